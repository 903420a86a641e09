-- Who is present, by the server's time. The rules are those of trio_wskit/_core/presence.py.
--
-- KEYS[1]  nodes: a sorted set, the end of each lease in milliseconds
-- KEYS[2]  numbers: a hash, the number of each node's last beat
-- KEYS[3]  version: the last one of all topics
-- ARGV[1]  what to do; ARGV[2] what the names of all other keys begin with, in the same slot:
--            …held:NODE    a set of what the node has told: "6:room:7ann" for ann in room:7, with the length of the topic
--            …topic:TOPIC  a hash: identity -> {"NODE": [when, state], …}, and under '' the topic's version
--
-- beat NODE number answered first doubtful ttl max_members max_swept n (node held){n} (topic identity state|""){…}
--      The n pairs are acknowledged: what was reported of lapsed nodes has reached those who want to know. Until then
--      it is reported again, by whoever beats.
--      Returns known, held, more, diffs, refused (topic identity)…, swept (node held)…; a diff is
--      topic, previous, version, count, (identity state)…, leaves.
-- retire NODE ms     members TOPIC -> lapsed nodes, hash
-- count TOPIC identity… -> number, those identities included; where nodes have lapsed -1, and what `members` gives
--
-- Nothing here loops over members, except `members`, and over 1,000 changes and 1,000 swept at most; `count` loops over
-- those whom one process has not told yet.

local nodes, numbers, last_version = KEYS[1], KEYS[2], KEYS[3]
local command, prefix = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2]) -- below 2^53 until the year 2255
local now = math.floor(now_us / 1000)

local function lapsed()
  return redis.call('ZRANGEBYSCORE', nodes, '-inf', now)
end

if command == 'retire' then
  return redis.call('ZADD', nodes, 'XX', 'LT', now + tonumber(ARGV[4]), ARGV[3])
elseif command == 'members' then
  return { lapsed(), redis.call('HGETALL', prefix .. 'topic:' .. ARGV[3]) }
elseif command == 'count' then
  local key = prefix .. 'topic:' .. ARGV[3]
  if redis.call('ZCOUNT', nodes, '-inf', now) > 0 then
    return { -1, lapsed(), redis.call('HGETALL', key) }
  end
  local count = math.max(redis.call('HLEN', key) - 1, 0)
  for place = 4, #ARGV, 1000 do -- half the time of as many HEXISTS
    for _, told in ipairs(redis.call('HMGET', key, unpack(ARGV, place, math.min(place + 999, #ARGV)))) do
      count = count + (told and 0 or 1)
    end
  end
  return { count }
end

local node, number = ARGV[3], tonumber(ARGV[4])
local answered, first, doubtful = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7] == '1'
local ttl, max_members, max_swept = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local acknowledged = 12
local at = acknowledged + 2 * tonumber(ARGV[11])

local topics = {} -- in the order in which they were changed
local changed = {} -- topic -> identities in order, and the state of each; false for none

local function report(topic, identity, state)
  local entries = changed[topic]
  if not entries then
    entries = { order = {}, state = {} }
    changed[topic] = entries
    topics[#topics + 1] = topic
  end
  if entries.state[identity] == nil then
    entries.order[#entries.order + 1] = identity
  end
  entries.state[identity] = state
end

local function newest(told)
  local when, state = -1, false
  for _, one in pairs(told) do
    if one[1] > when then
      when, state = one[1], one[2]
    end
  end
  return when, state
end

local function load(topic, identity)
  local text = redis.call('HGET', prefix .. 'topic:' .. topic, identity)
  return text and cjson.decode(text) or {}
end

local function keep(topic, identity, told)
  if next(told) == nil then
    redis.call('HDEL', prefix .. 'topic:' .. topic, identity)
  else
    redis.call('HSET', prefix .. 'topic:' .. topic, identity, cjson.encode(told))
  end
end

local function remove(name, topic, identity, always)
  local told = load(topic, identity)
  local _, before = newest(told)
  if told[name] then
    told[name] = nil
    keep(topic, identity, told)
  end
  local _, after = newest(told)
  if before ~= after or always then
    report(topic, identity, after)
  end
end

local function add(topic, identity, state)
  local told = load(topic, identity)
  local when, before = newest(told)
  if not before then
    local members = redis.call('HLEN', prefix .. 'topic:' .. topic)
    if members > 0 and members - 1 >= max_members then
      return false
    elseif members == 0 then
      redis.call('HSET', prefix .. 'topic:' .. topic, '', '0')
    end
  end
  told[node] = { math.max(now, when + 1), state }
  keep(topic, identity, told)
  if before ~= state or doubtful then
    report(topic, identity, state)
  end
  return true
end

-- What lapsed nodes have left.
for place = acknowledged, at - 1, 2 do
  redis.call('SREM', prefix .. 'held:' .. ARGV[place], ARGV[place + 1])
end
local swept, more = {}, 0
for _, name in ipairs(lapsed()) do
  local key = prefix .. 'held:' .. name
  local left = max_swept - #swept / 2
  local held = left > 0 and redis.call('SRANDMEMBER', key, left) or {}
  for _, one in ipairs(held) do
    local length, rest = string.match(one, '^(%d+):(.*)$')
    length = tonumber(length)
    remove(name, string.sub(rest, 1, length), string.sub(rest, length + 1), true)
    swept[#swept + 1] = name
    swept[#swept + 1] = one
  end
  if redis.call('SCARD', key) > #held then
    more = 1
    break
  elseif #held == 0 and name ~= node then
    redis.call('ZREM', nodes, name)
    redis.call('HDEL', numbers, name)
  end
end

-- What this node tells.
local known, refused, held = 1, {}, prefix .. 'held:' .. node
local lease = redis.call('ZSCORE', nodes, node)
local last = tonumber(redis.call('HGET', numbers, node) or '-1')
if not lease and first then
  redis.call('ZADD', nodes, now + ttl, node)
elseif not lease or tonumber(lease) <= now or last < answered then
  known = 0
end
if known == 1 and number > last then
  redis.call('HSET', numbers, node, number)
  redis.call('ZADD', nodes, now + ttl, node)
  for place = at, #ARGV, 3 do
    local topic, identity, state = ARGV[place], ARGV[place + 1], ARGV[place + 2]
    local one = #topic .. ':' .. topic .. identity
    if state == '' then
      redis.call('SREM', held, one)
      remove(node, topic, identity, doubtful)
    elseif add(topic, identity, state) then
      redis.call('SADD', held, one)
    else
      refused[#refused + 1] = topic
      refused[#refused + 1] = identity
    end
  end
end

local diffs = {}
local version = tonumber(redis.call('GET', last_version) or '0')
for _, topic in ipairs(topics) do
  local key = prefix .. 'topic:' .. topic
  local entries = changed[topic]
  local previous = redis.call('HGET', key, '')
  local count = previous and redis.call('HLEN', key) - 1 or 0
  version = math.max(version + #entries.order, now_us)
  if count > 0 then
    redis.call('HSET', key, '', string.format('%.0f', version))
  else
    redis.call('DEL', key)
  end
  local joins, leaves = {}, {}
  for _, identity in ipairs(entries.order) do
    local state = entries.state[identity]
    if state then
      joins[#joins + 1] = identity
      joins[#joins + 1] = state
    else
      leaves[#leaves + 1] = identity
    end
  end
  diffs[#diffs + 1] = { topic, tonumber(previous or '0'), version, count, joins, leaves }
end
if #topics > 0 then
  redis.call('SET', last_version, string.format('%.0f', version))
end
return { known, redis.call('SCARD', held), more, diffs, refused, swept }
