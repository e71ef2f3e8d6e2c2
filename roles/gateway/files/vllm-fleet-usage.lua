-- SPDX-License-Identifier: Apache-2.0
-- Of vllm-fleet, role gateway. Looks on while an answer goes by, for the line of the log: when its first byte came, and
-- the tokens that its end names. It decides nothing: what it cannot read is not in the log, and the answer goes on.

-- Bytes of an answer that are kept: `usage` stands at its end.
local KEPT = 4096

local Usage = {id = "usage", flags = filter.FLT_CFG_FL_HTX}
Usage.__index = Usage

-- Each as chat and completions name it, and as responses do.
local TOKENS = {
  {"txn.tokens_in", '"prompt_tokens": *(%d+)', '"input_tokens": *(%d+)'},
  {"txn.tokens_out", '"completion_tokens": *(%d+)', '"output_tokens": *(%d+)'},
}

-- An error in a filter would end the answer.
local function careful(step)
  return function(self, txn, message)
    pcall(step, self, txn, message)
  end
end

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

function Usage:new()
  return setmetatable({tail = ""}, Usage)
end

-- A request's comes after its body was read and its server's pool was chosen.
Usage.http_headers = careful(function(self, txn, message)
  if message.channel:is_resp() then
    filter.register_data_filter(self, message.channel)
  else
    self.began = milliseconds()
  end
end)

Usage.http_payload = careful(function(self, txn, message)
  local part = message:body()
  if type(part) ~= "string" or #part == 0 then
    return
  end
  if self.began and not self.seen then
    self.seen = true
    txn:set_var("txn.first", milliseconds() - self.began)
  end
  self.tail = #part < KEPT and (self.tail .. part):sub(-KEPT) or part:sub(-KEPT)
end)

-- Quotes in what a model says have a backslash, so a model cannot write this. The last one counts: a stream may have many.
-- Without ^ an answer that has none would be searched again from each of its bytes.
Usage.http_end = careful(function(self, txn, message)
  local found = message.channel:is_resp() and self.tail:match('^.*"usage": *(%b{})')
  for _, names in ipairs(found and TOKENS or {}) do
    local count = found:match(names[2]) or found:match(names[3])
    if count then
      txn:set_var(names[1], count)
    end
  end
end)

core.register_filter("vllm-fleet-usage", Usage, function(made)
  return made
end)
