-- SPDX-License-Identifier: Apache-2.0
-- Of vllm-fleet, role gateway (gateway_aliases): puts a model's name where a request has an alias.
-- The configuration sets txn.real and calls the action, sets the new length, and has the filter.

-- First and last byte of the value of `model`, with its quotes: of the outermost object alone, and not in a text.
local function json_value(text)
  local depth, place, model = 0, 1, false
  while true do
    local at, _, char = text:find('(["{}%[%]])', place)
    if not at then return nil end
    if char == '"' then
      local stop = at
      repeat
        local found, _, what = text:find('(["\\])', stop + 1)
        if not found then return nil end
        stop = what == '"' and found or found + 1
      until what == '"'
      if model then return at, stop end
      model = depth == 1 and text:sub(at, stop) == '"model"' and text:find('^%s*:%s*"', stop + 1) ~= nil
      place = stop + 1
    else
      depth = depth + ((char == "{" or char == "[") and 1 or -1)
      place = at + 1
    end
  end
end

-- The same of a form's field, without quotes.
local function form_value(text)
  local _, head = text:find('name="?model"?\r\n')
  if not head then return nil end
  local _, blank = text:find("\r\n\r\n", head - 1, true)
  local stop = blank and text:find("\r\n", blank + 1, true)
  if stop then return blank + 1, stop - 1 end
end

core.register_action("vllm-fleet-alias", {"http-req"}, function(txn)
  local form = (txn.sf:req_hdr("content-type") or ""):lower():find("multipart/form-data", 1, true) == 1
  local first, last = (form and form_value or json_value)(txn.sf:req_body())
  if not first then return end
  local name, size = txn:get_var("txn.real"), last - first + 1
  if not form then name = '"' .. name .. '"' end
  txn:set_var("txn.alias_name", name)
  txn:set_var("txn.alias_from", first - 1)
  txn:set_var("txn.alias_size", size)
  local length = tonumber(txn.sf:req_hdr("content-length"))
  if length then txn:set_var("txn.alias_length", length + #name - size) end
end)

local Alias = {id = "vllm-fleet-alias", flags = filter.FLT_CFG_FL_HTX}
Alias.__index = Alias

function Alias:new()
  return setmetatable({}, Alias)
end

function Alias:http_headers(txn, message)
  if message.channel:is_resp() then return end
  self.name = txn:get_var("txn.alias_name")
  if self.name then filter.register_data_filter(self, message.channel) end
end

-- Called first with the body as it was buffered. What follows passes as it is.
function Alias:http_payload(txn, message)
  if not self.name then return end
  -- The length is said already: a body without the name must not go out.
  if message:set(self.name, txn:get_var("txn.alias_from"), txn:get_var("txn.alias_size")) < 0 then
    error("no place in the buffer for the name of a model")
  end
  self.name = nil
end

core.register_filter("vllm-fleet-alias", Alias, function(made) return made end)
