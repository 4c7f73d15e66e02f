-- Give a lock back, unless it expired and is somebody else's by now. After a failed load it rests instead, and says why.
-- KEYS: lock.  ARGV: token, milliseconds to rest or 0, why.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
