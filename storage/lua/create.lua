#!lua
-- create: the head of a new session and its first event. It is commit 1.
--
-- KEYS  1 head (hash)   2 hot (stream)
-- ARGV  1 request id   2 the event session.created, encoded   3… field, value pairs of the head
-- returns {'OK'} | {'KNOWN'} the same request made it | {'EXISTS'} another did | {'GONE'} tombstone
--
-- Invariant: a tombstone or a living head is never overwritten.

local seen = redis.call('HMGET', KEYS[1], 'd', 'e', 'r')
if seen[1] then
  return {'GONE'}
end
if seen[2] and seen[3] ~= ARGV[1] then
  return {'EXISTS'}
end
if seen[2] then
  -- Written again so that the caller's durability barrier covers what it is told.
  redis.call('HSET', KEYS[1], 'r', ARGV[1])
  return {'KNOWN'}
end
redis.call('HSET', KEYS[1], 'r', ARGV[1], unpack(ARGV, 3))
redis.call('XADD', KEYS[2], '1-0', 'e', ARGV[2])
return {'OK'}
