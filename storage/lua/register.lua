#!lua
-- register: the next version of an agent, unless the newest one is the same.
--
-- KEYS  1 agents of the tenant (hash: name → newest number, name@number → digest NUL record)
-- ARGV  1 name   2 digest   3 the record, encoded
-- returns {number, record}
--
-- Invariant: numbers of one name are gap-free from 1; a version is never overwritten.

local newest = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if newest > 0 then
  local field = ARGV[1] .. '@' .. string.format('%.0f', newest)
  local stored = redis.call('HGET', KEYS[1], field)
  local prefix = ARGV[2] .. '\0'
  if string.sub(stored, 1, #prefix) == prefix then
    -- Written again so that the caller's durability barrier covers what it is told.
    redis.call('HSET', KEYS[1], field, stored)
    return {newest, stored}
  end
end
local number = string.format('%.0f', newest + 1)
local record = ARGV[2] .. '\0' .. ARGV[3]
redis.call('HSET', KEYS[1], ARGV[1], number, ARGV[1] .. '@' .. number, record)
return {newest + 1, record}
