#!lua flags=allow-oom
-- vacate: clears an owner whose process is proven dead. Runs on a full server too: it only frees memory.
--
-- KEYS  1 head (hash)
-- ARGV  1 epoch   2 incarnation   3 '0' when the process lives and gives itself up, else '1'
--       4 nonce, '' when it is not known
-- returns {'OK'} | {'OTHER'} another owns it, or nobody | {'GONE'} | {'NONE'}
--
-- Invariant: without its nonce in the head the former owner cannot commit.

local head = redis.call('HMGET', KEYS[1], 'd', 'e', 'oi', 'n')
if head[1] then
  return {'GONE'}
end
if not head[2] then
  return {'NONE'}
end
if head[2] ~= ARGV[1] or head[3] ~= ARGV[2] or (ARGV[4] ~= '' and head[4] ~= ARGV[4]) then
  return {'OTHER'}
end
if ARGV[3] == '0' and redis.call('HEXISTS', KEYS[1], 'f') == 1 then
  if redis.call('HINCRBY', KEYS[1], 'f', -1) <= 0 then
    redis.call('HDEL', KEYS[1], 'f')
  end
end
redis.call('HDEL', KEYS[1], 'n', 'on', 'oi', 'oa', 'ol')
return {'OK'}
