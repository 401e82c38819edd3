#!lua
-- commit: one turn becomes true, all of it or nothing.
--
-- KEYS  1 head (hash)   2 hot (stream)   3 inbox (list)   4 dedup (hash)   5 state (string)
-- ARGV  1 epoch   2 nonce, '' when nobody owns it   3 expected version   4 commit id
--       5 first seq   6 most dedup entries   7 live channel   8 inline state: '' keep, '-' drop, '+…' set
--       9 arguments of head   10 events   11 outcomes   12 consumed items
--       then: head's field, value pairs; events, encoded; request id, outcome pairs; request ids
-- returns {'OK', version, next_seq} | {'DUPLICATE', version, next_seq} | {'FENCED'} | {'GONE'} | {'NONE'}
--         | {'VERSION', version} | {'SEQ', next_seq} | {'INBOX', request id} | {'DEDUP'}
--
-- Invariants: everything is checked before the first write, since a script is not rolled back. Versions
-- and seqs are gap-free. Leases and clocks are not looked at: epoch and nonce alone decide.

local head = redis.call('HMGET', KEYS[1], 'd', 'e', 'n', 'c', 'v', 's')
if head[1] then
  return {'GONE'}
end
if not head[2] then
  return {'NONE'}
end
if head[2] ~= ARGV[1] or (head[3] or '') ~= ARGV[2] then
  return {'FENCED'}
end
local version, next_seq = tonumber(head[5]), tonumber(head[6])
if head[4] == ARGV[4] then
  -- Written again so that the caller's durability barrier covers what it is told.
  redis.call('HSET', KEYS[1], 'c', ARGV[4])
  return {'DUPLICATE', version, next_seq}
end
if head[5] ~= ARGV[3] then
  return {'VERSION', version}
end

local fields, events = tonumber(ARGV[9]), tonumber(ARGV[10])
local outcomes, consumed = tonumber(ARGV[11]), tonumber(ARGV[12])
local fields_at = 13
local events_at = fields_at + fields
local outcomes_at = events_at + events
local consumed_at = outcomes_at + 2 * outcomes

if events > 0 and head[6] ~= ARGV[5] then
  return {'SEQ', next_seq}
end
if consumed > 0 then
  local items = redis.call('LRANGE', KEYS[3], 0, consumed - 1)
  for i = 1, consumed do
    local prefix = ARGV[consumed_at + i - 1] .. '\0'
    if string.sub(items[i] or '', 1, #prefix) ~= prefix then
      return {'INBOX', ARGV[consumed_at + i - 1]}
    end
  end
end
local fresh = 0
for i = 0, outcomes - 1 do
  fresh = fresh + 1 - redis.call('HEXISTS', KEYS[4], ARGV[outcomes_at + 2 * i])
end
if fresh > 0 and redis.call('HLEN', KEYS[4]) + fresh > tonumber(ARGV[6]) then
  return {'DEDUP'}
end

for i = 0, events - 1 do
  redis.call('XADD', KEYS[2], string.format('%.0f-0', next_seq + i), 'e', ARGV[events_at + i])
end
for i = 0, outcomes - 1 do
  redis.call('HSET', KEYS[4], ARGV[outcomes_at + 2 * i], ARGV[outcomes_at + 2 * i + 1])
end
if consumed > 0 then
  redis.call('LTRIM', KEYS[3], consumed, -1)
end
local state = string.sub(ARGV[8], 1, 1)
if state == '+' then
  redis.call('SET', KEYS[5], string.sub(ARGV[8], 2))
elseif state == '-' then
  redis.call('DEL', KEYS[5])
end
version, next_seq = version + 1, next_seq + events
redis.call('HSET', KEYS[1], 'v', string.format('%.0f', version), 's', string.format('%.0f', next_seq),
  'c', ARGV[4], unpack(ARGV, fields_at, events_at - 1))
redis.call('HDEL', KEYS[1], 'f')
redis.call('PUBLISH', ARGV[7], 'c')
return {'OK', version, next_seq}
