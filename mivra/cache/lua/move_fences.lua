-- Make groups stale: give each a new fence. With an interval, at most once in it over all processes.
-- KEYS: gate, fence of each group.  ARGV: new fence, milliseconds of the interval or 0, channel, and for each group the
-- fence that the caller saw after the last thing it knows of, or ''.
-- Returns milliseconds to wait, 1 if fences were moved, and the fences of now.
local now, due = {}, {}
for i = 2, #KEYS do
  now[i - 1] = redis.call('GET', KEYS[i]) or ''
  if ARGV[i + 2] == '' or ARGV[i + 2] == now[i - 1] then
    due[#due + 1] = i
  end
end
if #due == 0 then
  return {0, 0, unpack(now)}
end
if ARGV[2] ~= '0' and not redis.call('SET', KEYS[1], '', 'NX', 'PX', ARGV[2]) then
  -- In its last millisecond a gate is still there and has none left.
  return {math.max(1, redis.call('PTTL', KEYS[1])), 0, unpack(now)}
end
for _, i in ipairs(due) do
  redis.call('SET', KEYS[i], ARGV[1])
  now[i - 1] = ARGV[1]
end
redis.call('PUBLISH', ARGV[3], '')
return {0, 1, unpack(now)}
