#!lua flags=allow-oom
-- seal: moves the boundary between hot and cold. Runs on a full server too: it frees memory.
--
-- KEYS  1 head (hash)   2 hot (stream)   3 dedup (hash)
-- ARGV  1 epoch   2 nonce   3 hot_from as observed   4 new hot_from   5 cold index   6… forgotten request ids
-- returns {'OK'} | {'FENCED'} | {'MOVED', hot_from} | {'RANGE'} | {'GONE'} | {'NONE'}
--
-- Invariants: an event leaves hot in the same step that names the cold index which holds it. The boundary
-- never moves back. It may have moved on since it was observed, by a seal whose answer was lost: the index
-- holds everything below the new boundary all the same.

local head = redis.call('HMGET', KEYS[1], 'd', 'e', 'n', 'h', 's')
if head[1] then
  return {'GONE'}
end
if not head[2] then
  return {'NONE'}
end
if head[2] ~= ARGV[1] or (head[3] or '') ~= ARGV[2] then
  return {'FENCED'}
end
local hot_from, boundary = tonumber(head[4]), tonumber(ARGV[4])
if hot_from < tonumber(ARGV[3]) or hot_from > boundary then
  return {'MOVED', hot_from}
end
if boundary > tonumber(head[5]) then
  return {'RANGE'}
end
redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[4] .. '-0')
redis.call('HSET', KEYS[1], 'h', ARGV[4], 'x', ARGV[5])
for i = 6, #ARGV do
  redis.call('HDEL', KEYS[3], ARGV[i])
end
return {'OK'}
