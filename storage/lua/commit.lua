#!lua
-- commit: one turn becomes true, all of it or nothing.
--
-- KEYS  1 head (hash)   2 hot (stream)   3 inbox (list)   4 dedup (hash)   5 checkpoints (list)
-- ARGV  1 epoch   2 nonce, '' when nobody owns it   3 expected version   4 commit id
--       5 first seq   6 most dedup entries   7 live channel   8 '' neither files nor state change,
--       '=' files do, '-' the state does and lies in a blob, '+…' it does and this is its envelope
--       9 arguments of head   10 events   11 outcomes   12 consumed items   13 restore point to go back to, '0'
--       for none   14 last index of checkpoints
--       then: head's field, value pairs; events, encoded; request id, outcome pairs; request ids
-- returns {'OK', version, next_seq} | {'DUPLICATE', version, next_seq} | {'FENCED'} | {'GONE'} | {'NONE'}
--         | {'VERSION', version} | {'SEQ', next_seq} | {'INBOX', request id} | {'DEDUP'} | {'POINT'}
--
-- Checkpoints is the newest state's envelope, '' when it is a blob; then for each restore point, newest first,
-- what the head's v s um k ks ko m were, and the envelope.
--
-- Invariants: everything is checked before the first write, since a script is not rolled back. Versions
-- and seqs are gap-free. Leases and clocks are not looked at: epoch and nonce alone decide.

local head = redis.call('HMGET', KEYS[1], 'd', 'e', 'n', 'c', 'v', 's', 'um', 'k', 'ks', 'ko', 'm')
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
local fields_at = 15
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
local back, skipped = ARGV[13], 0
if back ~= '0' and back ~= head[5] then
  repeat
    local point = redis.call('LINDEX', KEYS[5], skipped + 1)
    if not point then
      return {'POINT'}
    end
    skipped = skipped + 8
  until point == back
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
if ARGV[8] ~= '' then
  redis.call('LTRIM', KEYS[5], skipped, -1)
  local newest = redis.call('LINDEX', KEYS[5], 0)
  if back == '0' and head[8] then
    -- Its envelope stays where it is: written anew it would go to the log and to replicas once more.
    if not newest then
      redis.call('LPUSH', KEYS[5], '')
    end
    redis.call('LPUSH', KEYS[5], head[11] or '', head[10], head[9], head[8], head[7], head[6], head[5])
  elseif newest then
    redis.call('LPOP', KEYS[5])
  end
  redis.call('LPUSH', KEYS[5], ARGV[8] == '=' and (newest or '') or string.sub(ARGV[8], 2))
  redis.call('LTRIM', KEYS[5], 0, ARGV[14])
end
version, next_seq = version + 1, next_seq + events
redis.call('HSET', KEYS[1], 'v', string.format('%.0f', version), 's', string.format('%.0f', next_seq),
  'c', ARGV[4], unpack(ARGV, fields_at, events_at - 1))
redis.call('HDEL', KEYS[1], 'f')
redis.call('PUBLISH', ARGV[7], 'c')
return {'OK', version, next_seq}
