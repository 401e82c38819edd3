#!lua
-- acquire: ownership by compare-and-set on the observed epoch and incarnation.
--
-- KEYS  1 head (hash)   2 inbox (list)
-- ARGV  1 observed epoch   2 observed incarnation, '' for none   3 nonce
--       4 node   5 incarnation   6 actor   7 lane of the new owner, '' for none
-- returns {'OK'} | {'FENCED'} | {'GONE'} | {'NONE'}
--
-- Invariants: epochs only grow, by one; one nonce per epoch. The same claim sent twice succeeds twice.
-- Claims that find something in the inbox are counted until a commit: see `Head.fruitless`.

local head = redis.call('HMGET', KEYS[1], 'd', 'e', 'n', 'oi')
if head[1] then
  return {'GONE'}
end
if not head[2] then
  return {'NONE'}
end
local epoch = tonumber(ARGV[1]) + 1
local again = tonumber(head[2]) == epoch and head[3] == ARGV[3]
local observed = head[2] == ARGV[1] and (head[4] or '') == ARGV[2]
if not (again or observed) then
  return {'FENCED'}
end
redis.call('HSET', KEYS[1], 'e', string.format('%.0f', epoch), 'n', ARGV[3],
  'on', ARGV[4], 'oi', ARGV[5], 'oa', ARGV[6])
if ARGV[7] == '' then
  redis.call('HDEL', KEYS[1], 'ol')
else
  redis.call('HSET', KEYS[1], 'ol', ARGV[7])
end
if not again and redis.call('LLEN', KEYS[2]) > 0 then
  redis.call('HINCRBY', KEYS[1], 'f', 1)
end
return {'OK'}
