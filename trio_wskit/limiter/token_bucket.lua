-- Token buckets, atomically. The arithmetic is that of trio_wskit/_core/bucket.py and reservations.py, to the last unit.
--
-- KEYS     the bucket of every request, in order.
-- ARGV[1]  the present in microseconds, or "" for the server's time.
-- ARGV[2]  words apart by a space: what to do with the keys, one thing after another:
--            t n (parts cap_us cap_parts cost_us cost_parts){n}   take from n buckets, from all or from none
--            r id parts cap_us cap_parts cost_us cost_parts       take from one bucket on approval
--            s id parts cost_us cost_parts                        settle what was taken on approval, for this cost
--            l parts cap_us cap_parts more_us more_parts cost_us cost_parts   take for `more` if it is there, else for cost
--            d                                                    make a bucket full
--
-- Returns numbers: the present; then for t, r and l: how it ended (1 paid, 2 paid for `more`, 0 refused, -1 the bucket
-- cannot be read or written), and for each bucket its present and its instant, as us and parts. Last, in the case of -1, the
-- server's error. One bad key spoils no other request: nothing here raises.
--
-- Lua's numbers are doubles, exact to 2^53. So an instant is two of them: whole microseconds, and how many of the `parts`
-- into which the policy cuts one; a cost comes multiplied out, in the same two. Only sums and comparisons are left to do.
--
-- A bucket is kept as text: the latest present it has seen, and the instant at which it is full. With reservations that are
-- open, also the instant before the oldest of them, and for each of them: id, when, cost, and what was spent after it and
-- before the next, as the map x -> max(x + shift, floor).

local MOST_OPEN = 64

local shown
if ARGV[1] == '' then
  local time = redis.call('TIME')
  shown = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
  shown = tonumber(ARGV[1])
end

local function add(us, fr, us2, fr2, parts)
  fr = fr + fr2
  if fr >= parts then
    return us + us2 + 1, fr - parts
  end
  return us + us2, fr
end

local function later(us, fr, us2, fr2)
  if us > us2 or (us == us2 and fr >= fr2) then
    return us, fr
  end
  return us2, fr2
end

-- What an instant becomes by a reservation and all that was spent after it.
local function apply(e, us, fr, parts)
  us, fr = later(us, fr, e.at, 0)
  us, fr = add(us, fr, e.cost, e.cost_fr, parts)
  us, fr = add(us, fr, e.shift, e.shift_fr, parts)
  return later(us, fr, e.floor, e.floor_fr)
end

local broken

local function load(key)
  local text = redis.pcall('GET', key)
  if not text then
    return { now = shown, us = shown, fr = 0, open = {} }
  end
  if type(text) == 'table' then
    broken = text.err
    return nil
  end
  local now, us, fr, rest = string.match(text, '^(%d+) (%d+) (%d+)(.*)$')
  if not now then
    broken = 'this is no token bucket: ' .. key
    return nil
  end
  local b = { now = tonumber(now), us = tonumber(us), fr = tonumber(fr), open = {}, stored = true }
  if shown > b.now then
    b.now = shown
  end
  if b.us < b.now then
    -- Full: nothing is owed, and nothing can come back.
    b.us, b.fr = b.now, 0
    return b
  end
  if rest ~= '' then
    local word = string.gmatch(rest, '%S+')
    b.base, b.base_fr = tonumber(word()), tonumber(word())
    for id in word do
      b.open[#b.open + 1] = {
        id = id,
        at = tonumber(word()),
        cost = tonumber(word()),
        cost_fr = tonumber(word()),
        shift = tonumber(word()),
        shift_fr = tonumber(word()),
        floor = tonumber(word()),
        floor_fr = tonumber(word()),
      }
    end
  end
  return b
end

-- True if it is kept. A full bucket is the same as none.
local function save(key, b)
  local done
  if b.us < b.now or (b.us == b.now and b.fr == 0) then
    done = not b.stored or redis.pcall('DEL', key)
  else
    local text = string.format('%.0f %.0f %.0f', b.now, b.us, b.fr)
    if #b.open > 0 then
      local words = { text, string.format('%.0f %.0f', b.base, b.base_fr) }
      for _, e in ipairs(b.open) do
        words[#words + 1] = e.id
        words[#words + 1] = string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f',
          e.at, e.cost, e.cost_fr, e.shift, e.shift_fr, e.floor, e.floor_fr)
      end
      text = table.concat(words, ' ')
    end
    if ARGV[1] == '' then
      -- Not before it is full.
      done = redis.pcall('SET', key, text, 'PXAT', string.format('%.0f', math.ceil((b.us + 1) / 1000)))
    else
      -- Somebody else's clock does not say when the server should forget.
      done = redis.pcall('SET', key, text, 'PX', '3600000')
    end
  end
  if type(done) == 'table' and done.err then
    broken = done.err
    return false
  end
  return true
end

-- Close the reservation in place `i`, and let what follows it belong to the one before.
local function close(b, i, parts)
  local e = table.remove(b.open, i)
  local before = b.open[i - 1]
  if before then
    before.floor, before.floor_fr = apply(e, before.floor, before.floor_fr, parts)
    before.shift, before.shift_fr = add(before.shift, before.shift_fr, e.cost, e.cost_fr, parts)
    before.shift, before.shift_fr = add(before.shift, before.shift_fr, e.shift, e.shift_fr, parts)
  else
    b.base, b.base_fr = apply(e, b.base, b.base_fr, parts)
  end
end

local function spend(b, cost, cost_fr, parts)
  b.us, b.fr = add(b.us, b.fr, cost, cost_fr, parts)
  local last = b.open[#b.open]
  if last then
    last.shift, last.shift_fr = add(last.shift, last.shift_fr, cost, cost_fr, parts)
    last.floor, last.floor_fr = later(last.floor, last.floor_fr, b.now, 0)
    last.floor, last.floor_fr = add(last.floor, last.floor_fr, cost, cost_fr, parts)
  end
end

local function reserve(b, id, cost, cost_fr, parts)
  if #b.open == 0 then
    b.base, b.base_fr = b.us, b.fr
  elseif #b.open >= MOST_OPEN then
    close(b, 1, parts)
  end
  b.us, b.fr = add(b.us, b.fr, cost, cost_fr, parts)
  b.open[#b.open + 1] = {
    id = id, at = b.now, cost = cost, cost_fr = cost_fr, shift = 0, shift_fr = 0, floor = b.now, floor_fr = 0,
  }
end

local word = string.gmatch(ARGV[2], '%S+')
local out = { shown }
local k = 0

local function affords(b, cost, cost_fr)
  local us, fr = add(b.us, b.fr, cost, cost_fr, b.parts)
  local most, most_fr = add(b.now, 0, b.cap, b.cap_fr, b.parts)
  return us < most or (us == most and fr <= most_fr)
end

local function take(n, id, leased)
  local ended, asked = 1, {}
  for i = 1, n do
    local b = load(KEYS[k + i]) or { failed = true, now = 0, us = 0, fr = 0 }
    asked[i] = b
    b.parts, b.cap, b.cap_fr = tonumber(word()), tonumber(word()), tonumber(word())
    local more, more_fr
    if leased then
      more, more_fr = tonumber(word()), tonumber(word())
    end
    b.cost, b.cost_fr = tonumber(word()), tonumber(word())
    if b.failed then
      ended = -1
    elseif leased and affords(b, more, more_fr) then
      ended, b.cost, b.cost_fr = 2, more, more_fr
    elseif not affords(b, b.cost, b.cost_fr) and ended == 1 then
      ended = 0
    end
  end
  for i = 1, n do
    local key, b = KEYS[k + i], asked[i]
    if ended > 0 and id then
      reserve(b, id, b.cost, b.cost_fr, b.parts)
    elseif ended > 0 and (b.cost > 0 or b.cost_fr > 0) then
      spend(b, b.cost, b.cost_fr, b.parts)
    end
    -- A refusal changes nothing but the latest present that the bucket has seen.
    if ended >= 0 and not save(key, b) then
      ended = -1
    end
  end
  out[#out + 1] = ended
  for i = 1, n do
    local b = asked[i]
    out[#out + 1], out[#out + 2], out[#out + 3] = b.now, b.us, b.fr
  end
  k = k + n
end

for op in word do
  if op == 't' then
    take(tonumber(word()))
  elseif op == 'r' then
    take(1, word())
  elseif op == 'l' then
    take(1, nil, true)
  elseif op == 's' then
    k = k + 1
    local id, parts, cost, cost_fr = word(), tonumber(word()), tonumber(word()), tonumber(word())
    local b = load(KEYS[k])
    for i, e in ipairs(b and b.open or {}) do
      if e.id == id then
        e.cost, e.cost_fr = cost, cost_fr
        close(b, i, parts)
        b.us, b.fr = b.base, b.base_fr
        for _, rest in ipairs(b.open) do
          b.us, b.fr = apply(rest, b.us, b.fr, parts)
        end
        break
      end
    end
    if b and b.stored then
      save(KEYS[k], b)
    end
  else
    k = k + 1
    redis.pcall('DEL', KEYS[k])
  end
end

out[#out + 1] = broken
return out
