"""Writes tests/fixtures/templates.json: chat templates as transformers 5 renders them.

Run it with a Python that has transformers, tokenizers, jinja2 and mlx-lm, whose template for
DeepSeek V3.2 is a function.
"""

import calendar
import copy
import datetime
import json
import pathlib

import tokenizers
import transformers
from mlx_lm.chat_templates import deepseek_v32
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 2, 3, 14, 5, 6)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock
TOKENIZER = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), bos_token="<s>", eos_token="</s>"
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the <weather> of a town & \"more\", for example in Zürich.",
            "parameters": {
                "type": "object",
                "properties": {
                    "town": {"type": "string", "enum": ["Bern", "Zürich"]},
                    "days": {"type": "integer", "default": 1, "maximum": 12345678901234},
                    "risk": {"type": "number", "default": 1.0, "minimum": 1e-07, "maximum": 1e22},
                },
                "required": ["town"],
            },
        },
    },
    {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}},
]


def call(name, arguments, id="call12345"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "  What is <b>\"up\"</b> & 'well', Zoë? 🙂\n"}
CONVERSATIONS = {
    "hi": [{"role": "user", "content": "hi"}],
    "system": [{"role": "system", "content": "Be brief. "}, USER],
    "long": [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nAll is well. "},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Still well.  ", "reasoning_content": "Nothing changed."},
        {"role": "user", "content": "Good."},
    ],
    "tools": [
        {"role": "user", "content": "Rain in Zürich?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "I must look.",
            "tool_calls": [
                call("weather", {"town": "Zürich", "days": 2, "risk": 0.5, "all": True, "no": None}),
                call("clock", {}, "call67890"),
            ],
        },
        {"role": "tool", "name": "weather", "content": "{\"rain\": 1.0}", "tool_call_id": "call12345"},
        {"role": "tool", "name": "clock", "content": "12:30", "tool_call_id": "call67890"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Thanks."},
    ],
    "parts": [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": "a.png"},
                {"type": "text", "text": "Compare "},
                {"type": "image"},
                {"type": "text", "text": "these."},
            ],
        }
    ],
    "wrong": [{"role": "assistant", "content": "I begin."}, {"role": "assistant", "content": "I go on."}],
    "prefix": [USER, {"role": "assistant", "content": "The answer is "}],
    "prefix_trimmed": [USER, {"role": "assistant", "content": " one\n"}],
    "prefix_thought": [USER, {"role": "assistant", "reasoning": "I think that "}],
    "prefix_parts": [
        USER,
        {"role": "assistant", "content": [{"type": "text", "text": "First, "}, {"type": "image"}]},
    ],
}

# For templates that expect arguments in the form of the API.
API = {
    "calls": [
        {"role": "system", "content": "Be brief.", "response_format": {"type": "object", "é": [1.0]}},
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "reasoning_content": "I must look.",
            "tool_calls": [
                call("weather", '{"town": "Zürich", "days": 2, "risk": 0.5, "all": true, "no": null, "x": {"y": [1, "<"]}}'),
                call("clock", "{}"),
            ],
        },
        {"role": "tool", "content": "{\"rain\": 1.0}"},
        {"role": "tool", "content": "12:30"},
    ],
    "called": [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call("clock", '{"zone": "CET"}')]},
        {"role": "tool", "content": "12:30"},
        {"role": "assistant", "content": "It is half past twelve.", "reasoning_content": "Read it."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "You are ", "reasoning_content": "Polite."},
    ],
    "developer": [{"role": "system", "content": ""}, {"role": "developer", "content": "Sum up."}],
    "developer first": [{"role": "developer", "content": "Sum up."}, {"role": "user", "content": "hi"}],
    "no developer": [{"role": "developer", "content": ""}],
    "stray result": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}, {"role": "tool", "content": "y"}],
    "stranger": [{"role": "narrator", "content": "Once."}],
    "offers": [{"role": "system", "content": "S", "tools": TOOLS}, {"role": "user", "content": "hi"}],
}

# Templates like those of model families; none is the template of a published model.
FAMILIES = {
    "chatml": """\
{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{% for message in messages %}
    {%- if message.content is string %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' }}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part %}<|image|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""",
    "headers": """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2025" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system message may be left out. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|header|>system<|end_header|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{% endif %}
{{- "Today: " + date_string + "\\n\\n" + system_message + "<|eot|>" }}
{%- if tools is not none and tools_in_user_message | default(true) %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content'] | trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Tools need a first user message!") }}
    {%- endif %}
    {{- "<|header|>user<|end_header|>\\n\\nFunctions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|header|>' + message['role'] + '<|end_header|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model calls one tool at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' + (tool_call.arguments | tojson) + '}<|eot|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|header|>ipython<|end_header|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|end_header|>\\n\\n' }}
{%- endif %}
""",
    "inst": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs have 9 characters!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content|string + ', "id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool roles are supported, not " + message.role + "!") }}
    {%- endif %}
{%- endfor %}
""",
    "turns": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '</turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<turn>model\\n' }}
{%- endif -%}
""",
    "thinking": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "channels": """\
{%- macro render_type(spec, nested=false) -%}
    {%- if spec.type == "string" -%}
        {%- if spec.enum -%}
            {{- '"' + spec.enum|join('" | "') + '"' -}}
        {%- else -%}
            {{- "string" }}
        {%- endif -%}
    {%- elif spec.type is defined and spec.type in ["number", "integer"] -%}
        {{- "number" }}
    {%- elif spec.type == "object" -%}
        {%- if spec.properties -%}
            {{- "{\\n" }}
            {%- for name, property in spec.properties.items() -%}
                {{- name }}
                {%- if name not in (spec.required or []) -%}{{- "?" }}{%- endif -%}
                {{- ": " + render_type(property, nested=true) }}
                {%- if property.default is defined -%}{{- " // default: " ~ property.default }}{%- endif -%}
                {%- if not loop.last -%}{{- ",\\n" }}{%- endif -%}
            {%- endfor -%}
            {{- "\\n}" }}
        {%- endif -%}
    {%- else -%}
        {{- "any" }}
    {%- endif -%}
{%- endmacro -%}
{%- macro render_tools(namespace_name, tools) -%}
    {{- "namespace " + namespace_name + " {\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\n" }}
        {{- "type " + tool.name + " = (" }}
        {%- if tool.parameters and tool.parameters.properties %}
            {{- "_: " + render_type(tool.parameters) }}
        {%- endif %}
        {{- ") => any;\\n\\n" }}
    {%- endfor %}
    {{- "} // namespace " + namespace_name }}
{%- endmacro -%}
{%- macro system_message() -%}
    {%- if model_identity is not defined %}
        {%- set model_identity = "You are a test." %}
    {%- endif %}
    {{- model_identity + "\\nCurrent date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}
{{- system_message() }}
{{- "<|end|>" }}
{%- if messages[0].role in ["developer", "system"] %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set developer_message = "" %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if developer_message or tools %}
    {{- "<|start|>developer<|message|>" + developer_message }}
    {%- if tools -%}
        {{- "\\n\\n# Tools\\n\\n" + render_tools("functions", tools) }}
    {%- endif -%}
    {{- "<|end|>" }}
{%- endif %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "content" in message and "<|channel|>" in message.content %}
            {{- raise_exception("You have passed a message with tags in the content field.") }}
        {%- endif %}
        {%- if "tool_calls" in message %}
            {%- set future_final = namespace(found=false) %}
            {%- for future in loop_messages[loop.index:] %}
                {%- if future.role == 'assistant' and "tool_calls" not in future %}
                    {%- set future_final.found = true %}
                {%- endif %}
            {%- endfor %}
            {%- set tool_call = message.tool_calls[0].function %}
            {%- if message.thinking and not future_final.found %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant to=functions." ~ tool_call.name ~ "<|channel|>commentary json<|message|>" ~ tool_call.arguments|tojson ~ "<|call|>" }}
            {%- set last_tool_call.name = tool_call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set last_tool_call.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if last_tool_call.name is none %}
            {{- raise_exception("Message has tool role, but there was no previous assistant message with a tool call!") }}
        {%- endif %}
        {{- "<|start|>functions." + last_tool_call.name + " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
""",
    "deep": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% if not thinking is defined %}{% set thinking = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true, is_last_user=false) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{%- set ns.is_last_user = true -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none %}{%- if ns.is_last_user %}{{'<|Assistant|></think>'}}{%- endif %}{%- set ns.is_last_user = false -%}{%- set ns.is_first = false %}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{%- if message['content'] is none or message['content'] is undefined %}{{'<|calls|><|call|>'+ tool['function']['name'] + '<|sep|>' + tool['function']['arguments']|tojson + '<|call_end|>'}}{%- else %}{{message['content'] + '<|calls|><|call|>' + tool['function']['name'] + '<|sep|>' + tool['function']['arguments']|tojson + '<|call_end|>'}}{%- endif %}{%- set ns.is_first = true -%}{%- else %}{{'<|call|>'+ tool['function']['name'] + '<|sep|>' + tool['function']['arguments']|tojson + '<|call_end|>'}}{%- endif %}{%- endfor %}{{'<|calls_end|>' + eos_token}}{%- endif %}{%- if message['role'] == 'assistant' and (message['tool_calls'] is not defined or message['tool_calls'] is none) %}{%- if ns.is_last_user %}{{'<|Assistant|>'}}{%- if message['prefix'] is defined and message['prefix'] and thinking %}{{'<think>'}}{%- else %}{{'</think>'}}{%- endif %}{%- endif %}{%- set ns.is_last_user = false -%}{%- if ns.is_tool %}{{message['content'] + eos_token}}{%- set ns.is_tool = false -%}{%- else %}{%- set content = message['content'] -%}{%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] -%}{%- endif %}{{content + eos_token}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_last_user = false -%}{%- set ns.is_tool = true -%}{{'<|out|>' + message['content'] + '<|out_end|>'}}{%- endif %}{%- endfor -%}{%- if add_generation_prompt and ns.is_last_user and not ns.is_tool %}{{'<|Assistant|>'}}{%- if not thinking %}{{'</think>'}}{%- else %}{{'<think>'}}{%- endif %}{% endif %}
""",
    "blocks": """\
{% for message in messages -%}
{%- if message['role'] == 'assistant' %}
<|assistant|>
{% generation %}
{% set shout = message['content'] | upper %}
{{ shout }}{{ eos_token }}
{% endgeneration %}
{% else %}
<|{{ message['role'] }}|>
{{ message['content'] }}{{ shout }}
{% endif %}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}
""",
}

# One construct each, rendered for the conversation "long".
SNIPPETS = r"""
{{ [1, 2, 3, 4][::-1] }} {{ 'abc'[::-1] }} {{ 'abcdef'[1:-1:2] }} {{ [1, 2, 3][-1] }} {{ [1, 2, 3][:2] }} {{ (1, 2, 3)[1:] }}
{{ messages[-1].role }} {{ messages[-2]['role'] }} {{ messages[1:][0].role }} {{ messages | length }}
{{ [1] + [2] }} {{ 'a' 'b' }} {{ 'a' ~ 1 ~ 2.0 ~ none ~ true }} {{ 'a' + 'b' }} {{ 'ab' * 2 }} {{ [0] * 3 }}
{{ 1.0 }} {{ 10 / 4 }} {{ 10 / 5 }} {{ 10 // 4 }} {{ 2 ** 3 }} {{ 7 % 3 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 0.1 + 0.2 }}
{{ true }} {{ none }} {{ True }} {{ None }} {{ False }} {{ [true, none, 'x', 1.5] }}
{{ {'a': 1, 'b': [1, 'x']} }} {{ ['a', 'b\'c', "d\"e", 'ü\n'] }} {{ (1,) }} {{ (1, 'a') }} {{ {} }} {{ [] }}
{{ '%s-%d' % ('x', 3) }} {{ '%s' % 'y' }} {{ '%5.2f|%-4s|%04d' % (3.14159, 'ab', 42) }} {{ '100%%' % () }}
{{ '%s' % messages[0].role|upper }} {{ 'a' ~ '%s!' % ('b' ~ '%d' % 3) }} {{ "%s" % [1, 2] }} {{ '%s' % -1 }} {{ '%s' %none}}
{% set x = 'a' %}{{ x }}{% if 'a' %}b{% endif %}{{ 'x'%}}
{{ '%s' }} {{ "%" }} {{ '{% generation %}' }} {{ '"%' ~ '%"' }}
{{ '%s and %s'|format('x', 2) }} {{ '{} {}'.format(1, 'z') }} {{ '{0}-{1}-{0}'.format('a', 'b') }} {{ '{a}'.format(a=1) }}
{{ 'a,b'.split(',') }} {{ 'a b  c'.split() }} {{ 'a-b-c'.split('-', 1) }} {{ ''.split(',') }} {{ 'a'.split('x') }}
{{ 'a-b-c'.rsplit('-', 1) }} {{ 'a b c'.rsplit() }} {{ ' a  b c '.rsplit(None, 1) }} {{ 'abc'.rsplit('-') }} {{ 'a-b-c'.rsplit('-') }}
{{ ' x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xya'.lstrip('xy') }}|{{ 'ayx'.rstrip('xy') }}|{{ '\n a\n'.rstrip('\n') }}|
{{ 'ab'.upper() }} {{ 'AB'.lower() }} {{ 'ab cd-ef'.title() }} {{ 'ab CD'.capitalize() }} {{ 'ß'.upper() }}
{{ 'abc'.replace('b', 'x') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'a'|replace('a', 'b') }} {{ 'aaa'|replace('a', 'b', 1) }}
{{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'äbcabc'.rfind('a') }} {{ 'äbc'.index('c') }} {{ 'abca'.rindex('a') }} {{ 'abcabc'.count('a') }}
{{ 'abc'.index('z') }}
{{ '-'.join(['1', '2']) }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith('b') }}
{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'abc'.zfill(2) }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removeprefix('b') }} {{ 'abc'.removesuffix('bc') }} {{ 'abc'.removesuffix('') }}
{{ 'a=b=c'.partition('=') }} {{ 'abc'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.rpartition('=') }}
{{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\nb'.splitlines(true) }} {{ ''.splitlines() }}
{{ '12'.isdigit() }} {{ 'a1'.isdigit() }} {{ ''.isdigit() }} {{ 'ab'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab'.islower() }} {{ '12'.isnumeric() }}
{{ {'a': 1}.get('b', 5) }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ messages[0].get('role') }} {{ messages[0].get('nope') is none }}
{% for k, v in {'z': 1, 'a': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k in {'z': 1, 'a': 2} %}{{ k }}{% endfor %}
{{ {'z': 1, 'a': 2}.keys() | list }} {{ {'z': 1}.values() | list }} {{ {'z': 1}.items() | list }} {{ {'a': 1} | items | list }} {{ {'z': 1, 'a': 2} | dictsort }}
{% for k, v in messages[0] | items %}{{ k }}={{ v }};{% endfor %}{{ 'role' in messages[0] }} {{ 'x' in messages[0].keys() }} {{ messages[0].items() | length }}
{% set d = dict(a=1, b=2) %}{{ d.a }}{{ d['b'] }}{{ d }} {{ dict({'x': 1}, y=2) }}
{% set ns = namespace(x=[], n=0) %}{% for i in range(3) %}{% set ns.x = ns.x + [i] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.x }} {{ ns.n }}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% for i in range(6) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in [3, 1, 2] if i > 1 %}{{ loop.index }}{{ i }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }} {% else %}none{% endfor %}
{% for a in [1, 2, 3] %}{{ loop.previtem if not loop.first else '-' }}{{ loop.nextitem | default('-') }}{{ loop.cycle('x', 'y') }}{{ loop.changed(a > 1) }} {% endfor %}{% for a in [] %}x{% else %}empty{% endfor %}
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{% for a in 'añ' %}{{ a }}.{% endfor %}{% for x in nothing %}{{ x }}{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}[{{ loop(x) }}]{% else %}{{ x }}{% endif %}{% endfor %}
{% macro f(a, b='d', c=none) %}{{ a }}{{ b }}{{ c is none }}{% endmacro %}{{ f('x') }} {{ f('x', b='y') }} {{ f('x', c=1) }} {{ f(a=1) | upper }}
{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}z{% endcall %}{% macro g(x) %}{{ strftime_now('%Y') }}{{ bos_token }}{{ x }}{{ messages | length }}{% endmacro %}{{ g(1) }}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% macro f() %}{{ raise_exception('from a macro') }}{% endmacro %}{{ f() }}
{% set x %}block {{ 1 }}{% endset %}{{ x }}{% set y | upper %}up{% endset %}{{ y }}{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}{% filter upper %}ab{% endfilter %}{% raw %}{{ x }}{% generation %}{% endraw %}
{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}{%- generation -%} y {%- endgeneration -%} {% if x is defined %}a{% endif %}
{# {% generation %} '% #}{{ 1 }}{#- "x -#}  {{ 2 }}{{- ' {{ ' -}}  {{ '}}' }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': {'b': 1}} }}
{{ nothing | items | list }} {{ nothing | list }} {{ nothing | join }} {{ nothing | map('upper') | list }} {{ nothing | first is defined }} {{ nothing | upper }}{{ nothing | trim }}{{ nothing | string }} {{ nothing | selectattr('x') | list }} {{ nothing | sort }} {{ nothing | replace('a', 'b') }} {{ nothing ~ 'a' }} {{ nothing | int }} {{ nothing | reverse | list }} {{ nothing | unique | list }}
{{ 'a' | items | list }}
{{ 1e-7 }} {{ 1e22 }} {{ 1.5e300 | string }} {{ -2e-5 | string | length }} {{ 0.0001 }} {{ 123456789012345.0 }} {{ 1e16 }} {{ -0.0 }} {{ 5e-324 }}
{{ nothing }}|{{ nothing | length }}|{{ nothing is defined }}|{{ nothing is undefined }}|{{ nothing or 'q' }}|{{ not nothing }}|{{ nothing == none }}|{{ nothing is none }}
{{ messages[0].nope }}|{{ messages[0]['nope'] is defined }}|{{ messages[9] is defined }}|{{ messages[0].nope is none }}|{{ messages[0].nope is not none }}
{{ nothing.x }}
{{ messages[0].nope.x }}
{{ messages[0].nope['x'] }}
{{ nothing + 'a' }}
{{ 'a' + nothing }}
{{ 'a' + 1 }}
{{ 'a' + none }}
{{ none | length }}
{{ 1 | length }}
{{ nothing() }}
{{ 'a'.nope() }}
{{ messages | nope }}
{{ messages is nope }}
{% if %}
{% for x in y %}
{{ 'a
{{ 1 +
{% nope %}
{% endif %}
{{ raise_exception('No "good" reason: ' ~ 1) }}
{{ 1 / 0 }}
{{ none.x }}
{{ none[0] }}
{{ [1, 2] | tojson | length }} {{ nothing | tojson }}
{{ [1, 'a', none, true, 1.5, 1.0, 1e-7, 1e22, -0.0, 12345678901234567890, 0.1] | tojson }} {{ (1, 2) | tojson }} {{ [] | tojson }} {{ {} | tojson }}
{{ {'b': 1, 'a': {'c': '<é>&\'"\\/\n\t\u0001\u007f\u2028'}} | tojson }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ 'x' | tojson }}
{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ {'b': [1, {}], 'e': {}, 'f': [], 'g': {'h': [2]}} | tojson(indent=2) }} {{ [[]] | tojson(indent=0) }}
{{ {'b': [1, 2]} | tojson(separators=(',', ':')) }} {{ [1, 2] | tojson(separators=(';', '='), indent=1) }} {{ {1: 2, none: 4, 1.5: 5} | tojson }}
{{ messages[0] | tojson }} {{ messages | tojson }} {{ messages[4].thinking }} {{ messages[4].reasoning }}
{{ tools | tojson }} {{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ not tools }} {{ add_generation_prompt }} {{ bos_token }} {{ pad_token is defined }}
{{ strftime_now('%Y-%m-%d %H:%M:%S %B %b %A %a %j %y %p %I %e|%-d|%-m|%F|%T|%D|%R|%c|%x|%X|%U|%W|%u|%w|%%|%f|%Z|%h') }}
{{ 'x' | upper | indent(2, true) }} {{ 'a\nb\n\nc' | indent(2) }} {{ 'a\nb' | indent(width=3, first=true) }}
{{ '5' | int + 1 }} {{ '5.5' | float }} {{ 3 | string }} {{ 3.7 | int }} {{ 'x' | int(7) }} {{ '1' | float }}
{{ 'x' if true else 'y' }} {{ 'x' if false }}|{{ ('a' if false else 'b') ~ 'c' }} {{ 1 if messages else 0 }}
{{ 3 is number }} {{ 3 is integer }} {{ 3.0 is float }} {{ 's' is string }} {{ {} is mapping }} {{ true is boolean }} {{ none is none }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ true is number }} {{ true is integer }}
{{ [] is sequence }} {{ 's' is sequence }} {{ {} is sequence }} {{ (1,) is sequence }} {{ 1 is sequence }} {{ none is sequence }} {{ nothing is sequence }} {{ range(3) is sequence }}
{{ 's' is iterable }} {{ [] is iterable }} {{ {} is iterable }} {{ 1 is iterable }} {{ none is iterable }} {{ nothing is iterable }} {{ nothing is string }} {{ nothing is mapping }}
{{ 4 is even }} {{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ 1 is eq 1 }} {{ 1 is in [1] }} {{ 'a' is lower }} {{ 'A' is upper }} {{ 1 is sameas 1 }}
{{ 'a' in 'abc' }} {{ 'a' in {'a': 1} }} {{ 2 not in [1] }} {{ not 1 in [1] }} {{ 'a' < 'b' }} {{ 1 < 2 < 3 }} {{ [1] == [1] }} {{ {'a': 1} == {'a': 1} }} {{ 1 == 1.0 }} {{ '1' == 1 }} {{ 1 != 2 and 2 >= 2 }} {{ 'a' in nothing }}
{{ 'a' and 'b' }} {{ '' or 'c' }} {{ not '' }} {{ 0 or none }} {{ [] and 1 }} {{ true and not false }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | map(attribute='nope', default='-') | join }} {{ ['a'] | map('upper') | list }} {{ [[1, 2], [3]] | map('first') | list }} {{ [1, 2] | map('string') | join('/') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | selectattr('role', 'in', ['user', 'system']) | map(attribute='role') | list }} {{ messages | rejectattr('role', '==', 'user') | list | length }} {{ messages | selectattr('reasoning_content') | list | length }} {{ messages | selectattr('reasoning_content', 'defined') | first is mapping }}
{{ [1, 2, 3] | select('odd') | list }} {{ [1, 2, 3] | reject('odd') | list }} {{ [0, 1, ''] | select | list }} {{ [1, 2, 3] | sum }} {{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }}
{{ [3, 1] | sort }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A'] | sort(case_sensitive=true) }} {{ [1, 2] | sort(reverse=true) }} {{ [1, 1, 2] | unique | list }} {{ [1, 2] | min }} {{ [1, 2] | max }} {{ messages | sort(attribute='role') | map(attribute='role') | list }}
{{ 'abc' | first }} {{ 'abc' | last }} {{ 'abc' | reverse }} {{ [1, 2] | reverse | list }} {{ [1, 2] | first }} {{ [] | first is defined }} {{ 'abc' | list }}
{{ '  a ' | trim }}| {{ 'xax' | trim('x') }} {{ 'a b' | title }} {{ 'aB c' | capitalize }} {{ 'Ab' | lower }} {{ 'ab' | upper }} {{ 1 | upper }}
{{ 'a' | default('z') }} {{ nothing | default('z') }} {{ '' | default('z') }}|{{ '' | default('z', true) }} {{ none | default('z') }} {{ none | d('z', boolean=true) }} {{ messages[0].nope | default([]) }}
{{ 'a\tb' }}|{{ "a\u00e9" }}|{{ 'a\\n' }}|{{ 'a\'b' }}|{{ "\x41" }}|{{ '\\' }}
{{ [1, 2, 3] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3] | slice(2) | list }} {{ messages | groupby('role') | map('first') | list }} {{ -3 | abs }} {{ 10 | round }} {{ 2.567 | round(2) }} {{ 2.5 | round }}
{{ '<' }} {{ '<' | safe }} {{ '<' | e }} {{ '<' | escape }} {{ range(3) | list }} {{ range(1, 6, 2) | list }} {{ cycler is defined }} {{ joiner is defined }}
{% set j = joiner(', ') %}{% for i in [1, 2] %}{{ j() }}{{ i }}{% endfor %} {{ [1, 2] | join(', ') }} {{ [{'a': 1}] | join(',', attribute='a') }} {{ 'a-b' | replace('-', '_') | upper }}
{{ messages[0].role.upper() }} {{ (messages[0].content ~ '!').strip() }} {{ messages[0]['content'].split(' ')[0] }} {{ messages[0].content[:2] }} {{ messages[0].content[-3:] | trim }}
{{ messages[0].keys() | list }} {{ messages[4].keys() | list }} {{ messages[0] == messages[0] }} {{ [1, 2, 1].count(1) }}
{{ 1_000 }} {{ 0x10 }} {{ -1 }} {{ +1 }} {{ - 1 | abs }} {{ 5 - -1 }} {{ 2 * 3 + 1 }} {{ (2 + 3) * 2 }} {{ 2 ** 3 ** 2 }} {{ 7 // 2 * 2 }} {{ 'a' ~ 1 + 2 }} {{ 2 ** -1 }}
{{ 'a' is string and 1 is number or false }} {{ not 'a' is string }} {{ 'a' is not string }} {{ 1 == 1 and 'x' or 'y' }} {{ [1, 2, 3,] }} {{ {'a': 1,} }} {{ 'a' if 1 is number else 'b' }}
{{ messages[0]['role'] ~ ': ' ~ messages[0]['content'] | trim ~ '.' }} {{ 'abc' | length + 1 }} {{ 'A' | lower ~ 'B' | lower }} {{ not nothing is defined }}
{%- if true -%}  a  {%- endif -%}  b  {%+ if true %}  c  {% endif +%}  d
{{ 'x' -}}   y   {{- 'z' }}   w
{% set d = {'a': 1} %}{% set _ = d.update({'b': 2}) %}{{ d }}
{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}
{% set ns = namespace(a=1) %}{{ ns.a }}{{ ns.b is defined }}{% set ns.b = 2 %}{{ ns.b }}
{{ ''.__class__ }}
{{ messages.__class__.__mro__ }}
{% set x = 1 %}{{ x.y is defined }} {{ 'a'.b is defined }} {{ [1].b is defined }} {{ {'a': 1}.b is defined }}
{% set tool_call = {'function': {'arguments': '{"a": 1}'}} %}{{ tool_call.function.arguments if tool_call.function.arguments is string else tool_call.function.arguments | tojson }}
{% for message in messages if message.role != 'system' %}{{ loop.index0 }}{{ message.role[0] }}{% if not loop.last %},{% endif %}{% endfor %}
{% for group in [[1, 2], [3]] %}{% set outer = loop %}{% for x in group %}{{ outer.index }}.{{ loop.index }} {% endfor %}{% endfor %}
{% for k in {'a': 1, 'b': 2, 'c': 3}.keys() | reject('in', ['a', 'c']) %}{{ k }}{% endfor %}{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% if not loop.last %},{% endif %}{% endfor %}
{% macro f() %}{{ x }}{{ y is defined }}{% endmacro %}{% set x = 1 %}{{ f() }}
{% set x = 1 %}{% macro f() %}{{ x }}{% set x = 2 %}{{ x }}{% endmacro %}{{ f() }}{{ x }}{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}
{% set ns = namespace(n=0) %}{% macro f() %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endmacro %}{{ f() }}{{ f() }}{{ ns.n }}
{% macro f(text, tag='x') %}{% if text is string %}{{ text }}{% elif text is iterable and text is not mapping %}{% for t in text %}{{ f(t, tag=tag) }}{% endfor %}{% else %}<{{ tag }}>{{ text }}</{{ tag }}>{% endif %}{% endmacro %}{{ f(['a', ['b'], 1, none], 'y') }}{{ f(nothing) }}
{% for i in range(messages | length - 1, -1, -1) %}{{ messages[i].role[:1] }}{% endfor %} {{ range(3)[1] }} {{ range(2) | length }} {{ 1 in range(2) }}
{{ (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] }} {{ (nothing or []) | length }} {{ messages[0].content.split('e') | last }} {{ messages[0].content[messages[0].content.find('b'):] }}
{{ 'a,b' | replace(',', '') | upper | trim }} {{ "\n" * 2 }}| {{ 'x' ~ ('a' if nothing else 'b' if true else 'c') ~ 'y' }} {{ 'system' in (messages | map(attribute='role')) }}
{{ 1 is gt 0 }} {{ 1 is ge 1 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 1 is le 0 }} {{ 'a' is not in ['b'] }} {{ 'a' is in 'abc' }} {{ 1 is not none }} {{ 'x' is defined and 'x' is not none }} {{ none is not defined }}
{% set x = nothing | default(none) %}{{ x is none }}{% if x is not none and x | length > 0 %}a{% endif %}{% set y = messages[0].tool_calls or [] %}{{ y }}{% set z = (messages[0].get('a') or {}).get('b', 'c') %}{{ z }}
{% if (messages and
      messages[0].role == 'system') %}{{ messages[0]
  .content }}{% endif %}
{% for m in messages + [{'role': 'x', 'content': 'y'}] %}{{ m.role }}{% endfor %}{% for k in {'a': 1} | list %}{{ k }}{% endfor %}{% for i in (1, 2) %}{{ i }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{{ {'a': 1, 'b': 2}.items() | map('first') | list }} {{ {'a': 1} | length }} {{ {'a': 1}.items() | list | length }} {{ {'a': {'type': 'x'}}.a.type }} {{ {'items': [1]}['items'] }} {{ {'a': 1} | first }} {{ {'a': none}.a is none }}
{{ tools | default([]) | length }} {{ none | default([], true) | length }} {{ [1, 2, 3][1:] | join }} {{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abc'[5:] }}| {{ [1][5] is defined }} {{ 'a'[3] is defined }}
{% for x in 5 %}{{ x }}{% endfor %}
{{ [1] + 'a' }}
{{ {'a': 1} + {'b': 2} }}
{{ messages | map(attribute='content') | map('trim') | map('length') | list }} {{ messages | map(attribute='content.x') | list | length }} {{ ['a', 'b'] | map('replace', 'a', 'c') | join }} {{ messages | rejectattr('role', 'equalto', 'system') | map(attribute='role') | unique | list }}
{{ {'a': 1} | tojson | safe }} {{ 'é' | tojson(ensure_ascii=False) }} {{ [1] | tojson(indent=none) }} {{ {'a': {'b': 1}} | tojson(indent=4) | indent(2) }} {{ 'a' | string | tojson }} {{ ('a' ~ 1) | tojson }}
{{ [messages[0].role, 'x'] | join('-') }} {{ ('a', 'b') | join }} {{ 'abc' | join('-') }} {{ ['<', '>'] | join }} {{ [1, none, 'a'] | join(',') }} {{ (messages | first).role }}
{{ 'a'.center(5) }}|{{ 'ab'.center(5) }}|{{ 'a'.center(4, '-') }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '0') }}|{{ 'abc'.ljust(2) }}|
{{ '<b>x</b> y' | striptags }}
{{ [1, 2, 3] | map('int') | sum }} {{ messages | map('length') | list }}
{% block a %}x{% endblock %}{% set ns = namespace(**{'a': 1}) %}{{ ns.a }}
{{ '%x' % 255 }} {{ '%c' % 'a' }} {{ '%e' % 12345.678 }} {{ '%+d' % 3 }} {{ '%g' % 0.0001 }} {{ '%(a)s' % {'a': 1} }} {{ '%5s|%-5s|' % ('a', 'b') }}
{{ '{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c') }} {{ '{:.2f}'.format(1.2345) }} {{ '{:05d}'.format(42) }} {{ '{:,}'.format(1234567) }} {{ 'at: 123456 {a[b]} {c.role}'.format(a={'b': 1}, c=messages[0]) }}
{{ '😀é' | length }} {{ '😀é'[0] }} {{ '😀é'[::-1] }} {{ 'a\u0000b' | length }} {{ 'x' ~ '\u200d' | length }} {{ 'Ünïcode'.upper() }} {{ 'İ'.lower() | length }}
{{ ''.join(messages | map(attribute='role')) }} {{ dict(messages[0]).role }} {{ (messages[0].items() | list)[0][0] }} {{ messages[0] is mapping }} {{ (messages | groupby('role'))[0].grouper }} {{ (messages | groupby('role'))[0].list | length }}
{{ messages | tojson(indent=2) | length }} {{ 'x' | tojson | tojson }} {{ {'k': none} | tojson }} {{ none | tojson }} {{ [1.5, 2] | tojson(indent=1) }} {{ {'b': 1, 'a': 2}.items() | list | tojson }} {{ {'é': 'ü'} | tojson(ensure_ascii=true, indent=2) }}
{{ nothing.x is defined }}
{{ messages[0].nope is not defined or messages[0].nope.x }} {{ (messages[0].nope | default({})).x is defined }} {{ messages[0].content is defined and messages[0].content is not none }}
{%- for m in messages -%}{%- if loop.index0 == 0 -%}{%- continue -%}{%- endif -%}{{ loop.index }}{{ m.role[:1] }}{%- if loop.index > 3 -%}{%- break -%}{%- endif -%}{%- endfor -%}
{%- set ns = namespace(found=false) -%}{%- for m in messages -%}{%- if m['role'] == 'assistant' and not ns.found -%}{%- set ns.found = true -%}{{ m['content'] | trim | length }}{%- endif -%}{%- endfor -%}{{ ns.found }}
{% set parts = [] %}{% for m in messages %}{% set parts = parts + [m.role] %}{% endfor %}{{ parts | length }} {% set ns = namespace(parts=[]) %}{% for m in messages %}{% set ns.parts = ns.parts + [m.role] %}{% endfor %}{{ ns.parts | join('/') }}
{% macro box(x) -%}[{{ x }}|{{ caller is defined }}]{%- endmacro %}{{ box(1) }}{% call box(2) %}y{% endcall %}
{% macro a(x, y=bos_token) %}{{ x }}{{ y }}{% endmacro %}{{ a(1) }}{{ a(1, 2) }}{{ a.name }}
{{ 'a' in ['a', 'b'] and 'c' not in ['a', 'b'] }} {{ 1 in {1: 2} }} {{ none in [none] }} {{ 'ab' in 'cab' }} {{ [1] in [[1]] }} {{ (1, 2) == (1, 2) }} {{ [1, 2] < [1, 3] }} {{ 'a' > 'B' }} {{ true == 1 }} {{ none == false }}
{{ 7 / 2 }} {{ 7 // 2 }} {{ 7.0 // 2 }} {{ -7 / 2 }} {{ 2 ** 0.5 }} {{ 7.5 % 2 }} {{ 1_0 + 1 }} {{ 1 / 3 }} {{ 100000000000000000000 }} {{ 9007199254740993 + 1 }} {{ 0.1 * 3 }} {{ 3 | float }} {{ 3.0 | int }} {{ '0x1f' | int(0, 16) }} {{ '12abc' | int }} {{ 1.0 | string }} {{ 3.14159 | round(2, 'floor') }} {{ 42.55 | round(1) }}
{{ {'min': 1e-05, 'max': [1e22, 2.0]} }} {{ 'at ' ~ 1e-05 }} {{ [1e22, 2.5] | join(' ') }} {{ 1e-05 | replace('e', 'E') }} {{ 1e-05 | string | indent }} {{ '%s' % 1e22 }} {{ '{}'.format(1e-07) }} {{ (1e-05,) }} {{ 1e-05 * 10 ~ '' }} {{ [1e22] | map('string') | list }}
{% for c in 'añ🙂' %}{{ c }}{{ ',' if not loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.nextitem | default('-') }}{% endfor %}
{% if messages | selectattr('nope') %}a generator is true{% endif %}{{ messages | map(attribute='role') is sequence }} {{ {'a': 1}.keys() }} {{ {'a': 1}.items() }} {{ ['it\'s', 'a"b', 'é\x00\u200b'] }}
{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, b=3) }}
{% macro g(a) %}{{ a }}{% endmacro %}{{ g(1, 2) }}
{{ 'one two three four'|truncate(10) }} {{ 'one two three'|wordcount }} {{ 'a b&c'|urlencode }} {{ '{:+.1e} {:#x} {:_} {:<4}|{:%}'.format(12345.678, 255, 1234567, true, 0.5) }} {{ '%08.3f|%+d|%x|%-5s|' % (3.14159, 7, -255, 'é') }}
{{ messages | selectattr('content', 'string') | list | length }} {{ messages | rejectattr('reasoning_content', 'defined') | list | length }} {{ messages | selectattr('role', 'ne', 'user') | map(attribute='role') | join(',') }} {{ ['a', 'b'] | select('equalto', 'a') | list }} {{ [1, 2, 3] | select('>', 1) | list }} {{ [1, none] | reject('none') | list }} {{ messages | map(attribute='role') | unique | sort | join }}
""".strip("\n").split("\n")

MULTILINE = [
    "\n\n{{ 1 }}\n\n{% if true %}\nx\n{% endif %}\n\ty\n\n",
    "a\n  {% if true %}\n  b {% endif %}  \n  {# c #}\n  {{ 'd' }}\n",
    "{%- for m in messages %}\n  {{- m.role }}\n{% endfor %}\n\n",
    "line\r\n{% if true %}\r\nx\r\n{% endif %}\r\n",
    "{% if true -%}\n\n  x\n\n{%- endif %}\n{{ raise_exception('line seven') }}",
    "{# comment\n over lines #}\n{% raw -%}\n {{ a }} {%- endraw %}\n",
    "{% set x -%}\n  y\n{%- endset %}[{{ x }}]\n{% generation %}\nz\n{% endgeneration %}\nw",
    "",
    "no tags",
    "{ { } } {% if true %}{ {% endif %} % {",
]

RUNS = [
    ("system", {}),
    ("long", {}),
    ("long", {"tools": True}),
    ("long", {"add_generation_prompt": False}),
    ("long", {"variables": {"enable_thinking": False, "thinking": True, "reasoning_effort": "high", "date_string": "today"}}),
    ("tools", {"tools": True}),
    ("tools", {"variables": {"bos_token": "", "tools_in_user_message": False}}),
    ("parts", {}),
    ("wrong", {}),
    ("prefix", {"continue_final_message": True}),
    ("prefix_trimmed", {"continue_final_message": True}),
    ("prefix_parts", {"continue_final_message": True}),
    ("prefix_thought", {"continue_final_message": True}),
]


def render(source, conversation, options):
    prompt = options.get("add_generation_prompt", not options.get("continue_final_message", False))
    # Without content the reasoning is continued, which is a separate option in transformers.
    thought = options.get("continue_final_message") and "content" not in CONVERSATIONS[conversation][-1]
    return TOKENIZER.apply_chat_template(
        CONVERSATIONS[conversation],
        chat_template=source,
        tools=TOOLS if options.get("tools") else None,
        tokenize=False,
        add_generation_prompt=prompt,
        continue_final_message="reasoning" if thought else options.get("continue_final_message", False),
        **options.get("variables", {}),
    )


def case(template, conversation, options, render=render):
    result = {"template": template, "conversation": conversation, "options": options}
    try:
        result["expected"] = render(FAMILIES.get(template, template), conversation, options)
    except Exception as error:
        result["error"] = str(error).split("\n")[0]
        # The only messages that the template itself raises.
        result["raised"] = type(error).__name__ == "TemplateError"
    return {key: value for key, value in result.items() if value not in ({}, False)}


def render_type(_, conversation, options):
    prompt = options.get("add_generation_prompt", not options.get("continue_final_message", False))
    return deepseek_v32.apply_chat_template(
        copy.deepcopy((CONVERSATIONS | API)[conversation]),
        tools=copy.deepcopy(TOOLS) if options.get("tools") else None,
        add_generation_prompt=prompt,
        continue_final_message=options.get("continue_final_message", False),
        **options.get("variables", {}),
    )


TYPE_OPTIONS = [
    {},
    {"tools": True},
    {"add_generation_prompt": False},
    {"variables": {"enable_thinking": False}},
    {"variables": {"enable_thinking": False}, "tools": True},
    {"variables": {"enable_thinking": False}, "add_generation_prompt": False},
    {"variables": {"enable_thinking": True}, "continue_final_message": True},
    {"variables": {"enable_thinking": False}, "continue_final_message": True},
]


def main():
    typed = ["hi", "system", "long", "wrong", "prefix", *API]
    types = [case("deepseek_v32", name, options, render_type) for name in typed for options in TYPE_OPTIONS]
    # transformers does not continue a message of the user.
    types = [t for t in types if "continue_final_message" not in t.get("options", {}) or t["conversation"] in ("prefix", "called", "wrong")]
    cases = [case(family, *run) for family in FAMILIES for run in RUNS]
    cases += [case(snippet, "long", {}) for snippet in SNIPPETS + MULTILINE]
    fixture = {
        "local_time": calendar.timegm(NOW.timetuple()),
        "tools": TOOLS,
        "conversations": CONVERSATIONS | API,
        "families": FAMILIES,
        "cases": cases,
        "types": types,
    }
    path = pathlib.Path(__file__).parent.parent / "tests" / "fixtures" / "templates.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fixture, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    failed = sum("error" in case for case in cases)
    print(f"{len(cases)} cases and {len(types)} of types, {failed} of them errors, {path.stat().st_size} bytes")


main()
