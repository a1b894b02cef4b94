"""Chat templates that do what breaks simpler readings of them; see `chat_tokenizers` for the tokenizers."""

from __future__ import annotations

REASONING = (
    "{%- for m in messages %}{%- set words = m.content %}{%- set why = '' %}"
    "{%- if m.role == 'assistant' and '</think>' in words %}"
    "{%- set why = words.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{%- set words = words.split('</think>')[-1].lstrip() %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\\n' + why + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- words + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Sets reasoning apart from the last answer and takes it out of earlier ones, as Qwen 3."""
WANDERING = (
    "{{- bos_token }}{%- set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{%- set last = messages | map(attribute='role') | list %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set final = 'user' not in last[loop.index:] %}"
    "{{- '[INST] ' + (system + '\\n\\n' if system and final else '') + m.content + ' [/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)
"""The system prompt stands before the last question, and no generation prompt behind one, as of Mistral."""
HEADED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Turns have a beginning and no end."""
HARMONY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}{% if m.role == 'assistant' and loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
"""The model writes part of its header itself, and the last turn has an end of its own, as of gpt-oss."""
CHANGING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% else %}"
    "{% if loop.last or loop.index == 2 %}<|assistant|>{% else %}<|im_start|>{% endif %}{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A turn in the middle has another beginning than the generation prompt."""
INSTRUCTIONS = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
"""No special token anywhere."""
SPACED = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
"""A blank stands before the answer, which many vocabularies hold in one token with it, and one behind it."""
