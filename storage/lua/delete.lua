#!lua flags=allow-oom
-- delete: leaves a tombstone. Runs on a full server too: it frees memory.
--
-- KEYS  1 head (hash)   2 hot (stream)   3 inbox (list)   4 dedup (hash)   5 checkpoints (list)
-- ARGV  1 live channel
-- returns {'OK'} | {'NONE'}
--
-- Invariants: the tombstone stays for ever and its epoch is higher than any owner's. Idempotent.

local head = redis.call('HMGET', KEYS[1], 'd', 'e')
if not head[2] then
  return {'NONE'}
end
if head[1] then
  -- Written again so that the caller's durability barrier covers what it is told.
  redis.call('HSET', KEYS[1], 'd', '1')
  return {'OK'}
end
-- UNLINK: freeing a long history takes a while, and others wait.
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('HSET', KEYS[1], 'd', '1', 'e', string.format('%.0f', tonumber(head[2]) + 1))
redis.call('PUBLISH', ARGV[1], 'c')
return {'OK'}
