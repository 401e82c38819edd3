#!lua flags=allow-oom
-- release: the owner gives up ownership. Runs on a full server too: it only frees memory.
--
-- KEYS  1 head (hash)   2 inbox (list)   3 checkpoints (list)
-- ARGV  1 epoch   2 nonce   3 the version as the owner knows it   4 last index of checkpoints
-- returns {'OK'} | {'WAITING'} the inbox holds something | {'VERSION', version} the store went back
--         | {'FENCED'} | {'GONE'} | {'NONE'}
--
-- The node stays, as a hint: it may keep the workspace.
--
-- Invariant: what lies in the inbox of a session that is not paused has an owner, or a hint in the wake index.

local head = redis.call('HMGET', KEYS[1], 'd', 'e', 'n', 't', 'v')
if head[1] then
  return {'GONE'}
end
if not head[2] then
  return {'NONE'}
end
if head[2] ~= ARGV[1] or head[3] ~= ARGV[2] then
  return {'FENCED'}
end
if head[5] ~= ARGV[3] then
  return {'VERSION', tonumber(head[5])}
end
if head[4] ~= 'paused' and redis.call('LLEN', KEYS[2]) > 0 then
  return {'WAITING'}
end
redis.call('HDEL', KEYS[1], 'n', 'oi', 'oa', 'ol')
redis.call('LTRIM', KEYS[3], 0, ARGV[4])
return {'OK'}
