"""Conversations for the chat templates."""

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "天气 \"now\" <b>&</b>",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "A city"}, "days": {"type": "integer", "default": 3},
            "scale": {"type": "number", "minimum": 0.5}, "tags": {"type": ["array", "null"], "items": {"type": "string"}}},
            "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}},
]


def call(arguments, name="get_weather"):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


HELLO = [{"role": "user", "content": "Hello! 你好"}]
CHAT = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "请问什么是深度学习？"},
        {"role": "assistant", "content": "<think>\nreason\n</think>\n\n深度学习是……"}, {"role": "user", "content": "thanks"}]
SYSTEMS = [{"role": "system", "content": "one"}, {"role": "system", "content": "two"}, {"role": "user", "content": "x"},
           {"role": "assistant", "content": "no thoughts"}, {"role": "user", "content": "y"}]
OBJECTS = [{"role": "user", "content": "weather?"},
           {"role": "assistant", "content": "", "tool_calls": [call({"city": "北京", "days": 2, "scale": 1.5, "tags": None})]},
           {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": "{\"t\": 20}"},
           {"role": "assistant", "content": "20 degrees"}, {"role": "user", "content": "ok"}]
STRINGS = [{"role": "system", "content": "S"}, {"role": "user", "content": "w"},
           {"role": "assistant", "content": None, "tool_calls": [call("{\"city\": \"x\"}"), call("{}", "now")]},
           {"role": "tool", "tool_call_id": "call_1", "content": "rain"}, {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]
REASONED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "because"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "reasoning_content": "\nso\n", "tool_calls": [call({"city": "q"})]},
            {"role": "tool", "content": "1"}]

CONVERSATIONS = {
    "hello": {"messages": HELLO, "add_generation_prompt": True},
    "hello, no prompt": {"messages": HELLO},
    "chat": {"messages": CHAT, "add_generation_prompt": True},
    "chat, thinking off": {"messages": CHAT, "add_generation_prompt": True, "enable_thinking": False},
    "chat, thinking on": {"messages": CHAT, "add_generation_prompt": True, "enable_thinking": True, "thinking": True},
    "systems": {"messages": SYSTEMS, "add_generation_prompt": True, "tools": None},
    "objects": {"messages": OBJECTS, "add_generation_prompt": True, "tools": TOOLS},
    "objects, no tools": {"messages": OBJECTS, "add_generation_prompt": False},
    "strings": {"messages": STRINGS, "add_generation_prompt": True, "tools": TOOLS[:1], "date_string": "01 Jan 2025"},
    "strings, system tools": {"messages": STRINGS, "add_generation_prompt": True, "tools": TOOLS, "tools_in_user_message": False, "date_string": "01 Jan 2025"},
    "reasoned": {"messages": REASONED, "add_generation_prompt": True, "tools": TOOLS},
    "builtin": {"messages": OBJECTS[:3], "add_generation_prompt": True, "builtin_tools": ["code_interpreter", "search"], "date_string": "01 Jan 2025"},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}], "add_generation_prompt": True},
    "wrong role": {"messages": [{"role": "critic", "content": "x"}], "add_generation_prompt": True},
    "no messages": {"messages": [], "add_generation_prompt": True},
}
