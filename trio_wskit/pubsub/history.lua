-- The history of one topic. See redis_history.py, and docs/explanation/decisions/0060.
-- KEYS: 1 the stream (ids "1-0", "2-0", …), 2 a hash: e its epoch, o the newest offset, r the server's run
-- ARGV: 1 a: append, r: read; 2 a new epoch, in case; 3 size; 4 ttl in ms; 5 keep_position in ms
--   a: 6 the message                          -> {epoch, offset}
--   r: 6 epoch or "", 7 since or last, 8 limit -> {epoch, offset, 0 or 1, entries…}: 1 where they are all there
local stream, head = KEYS[1], KEYS[2]
local told = redis.call('HMGET', head, 'e', 'o', 'r')
local epoch, newest = told[1], tonumber(told[2] or '0')

-- A server that was started again may have lost the last messages, whatever it saves; so may the one that takes over
-- after a failure. Nobody can tell, so another run is another epoch.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if not epoch or told[3] ~= run then
  epoch, newest = ARGV[2], 0
  redis.call('DEL', stream)
  redis.call('HSET', head, 'e', epoch, 'o', '0', 'r', run)
end

local keep = math.max(tonumber(ARGV[4]), tonumber(ARGV[5]))
if ARGV[1] == 'a' then
  newest = newest + 1
  redis.call('HSET', head, 'o', string.format('%.0f', newest))
  redis.call('XADD', stream, 'MAXLEN', '=', ARGV[3], string.format('%.0f-0', newest), 'm', ARGV[6])
  redis.call('PEXPIRE', stream, ARGV[4])
  redis.call('PEXPIRE', head, string.format('%.0f', keep))
  return {epoch, newest}
end

if redis.call('PTTL', head) < keep then
  redis.call('PEXPIRE', head, string.format('%.0f', keep))
end
local asked, limit = tonumber(ARGV[7]), tonumber(ARGV[8])
local count = asked
if ARGV[6] ~= '' then
  if ARGV[6] ~= epoch or asked > newest then
    return {epoch, newest, 0}
  end
  count = newest - asked
elseif count > 0 then
  count = math.min(count, redis.call('XLEN', stream))
end
if count == 0 then
  return {epoch, newest, 1}
end
if count > limit or redis.call('XLEN', stream) < count then
  return {epoch, newest, 0}
end
local answer = {epoch, newest, 1}
for _, entry in ipairs(redis.call('XRANGE', stream, string.format('%.0f-0', newest - count + 1), '+')) do
  answer[#answer + 1] = entry[2][2]
end
if #answer - 3 ~= count then  -- somebody else has deleted some
  return {epoch, newest, 0}
end
return answer
