-- Give a lock back, unless it expired and is somebody else's by now.
-- KEYS: lock.  ARGV: token.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
