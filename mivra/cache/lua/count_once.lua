-- Add counts to a bucket; the same batch again does nothing, so that it may be sent until somebody answers.
-- KEYS: last batch of the sender, bucket.  ARGV: seconds to keep both, number of the batch, then field, count ...
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
for i = 3, #ARGV, 2 do
  -- What somebody else wrote there is in the way until the bucket expires; the other fields count.
  redis.pcall('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
