-- Write an entry only if none of its events was invalidated since the load began.
-- KEYS: entry, fence of each event.  ARGV: value, milliseconds to keep, fence of each event as the leader saw it.
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) ~= ARGV[i + 1] then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
