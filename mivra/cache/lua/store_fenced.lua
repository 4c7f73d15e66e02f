-- Write an entry only if none of its groups was invalidated since the load began, and tell the other processes.
-- KEYS: entry, fence of each group.  ARGV: value, milliseconds to keep, channel, fence of each group as the leader saw it.
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) ~= ARGV[i + 2] then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PUBLISH', ARGV[3], '+' .. KEYS[1])
return 1
