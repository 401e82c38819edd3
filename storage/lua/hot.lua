#!lua flags=no-writes
-- hot: a page of hot events with the boundary as of the same moment.
--
-- KEYS  1 head (hash)   2 hot (stream)
-- ARGV  1 seq after which to begin   2 most events
-- returns {'OK', hot_from, next_seq, cold index, stream entries} | {'GONE'} | {'NONE'}

local head = redis.call('HMGET', KEYS[1], 'd', 'e', 'h', 's', 'x')
if head[1] then
  return {'GONE'}
end
if not head[2] then
  return {'NONE'}
end
local entries = redis.call('XRANGE', KEYS[2], '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
return {'OK', tonumber(head[3]), tonumber(head[4]), head[5] or '', entries}
