#!lua
-- enqueue: a durable delivery, once per request id.
--
-- KEYS  1 head (hash)   2 inbox (list)   3 dedup (hash)
-- ARGV  1 request id   2 body digest   3 inbox entry   4 the pending outcome
--       5 most inbox entries   6 most dedup entries
-- returns {'OK', length} | {'KNOWN', length, outcome} | {'REUSED'} | {'FULL'} | {'DEDUP'} | {'GONE'} | {'NONE'}
--
-- Invariant: every item in the inbox has an entry in dedup. An outcome begins with its body digest and NUL.

local head = redis.call('HMGET', KEYS[1], 'd', 'e')
if head[1] then
  return {'GONE'}
end
if not head[2] then
  return {'NONE'}
end
local known = redis.call('HGET', KEYS[3], ARGV[1])
local length = redis.call('LLEN', KEYS[2])
if known then
  local prefix = ARGV[2] .. '\0'
  if string.sub(known, 1, #prefix) ~= prefix then
    return {'REUSED'}
  end
  -- Written again so that the caller's durability barrier covers what it is told.
  redis.call('HSET', KEYS[3], ARGV[1], known)
  return {'KNOWN', length, known}
end
if length >= tonumber(ARGV[5]) then
  return {'FULL'}
end
if redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[6]) then
  return {'DEDUP'}
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
return {'OK', redis.call('RPUSH', KEYS[2], ARGV[3])}
