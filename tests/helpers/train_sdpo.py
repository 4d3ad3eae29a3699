"""Trains TRL's SDPO on a file of rows; runs in an environment that has TRL, on the CPU. Prints one line of JSON.

python train_sdpo.py ROWS.jsonl MODEL OUT [CRITIC-URL]
"""

from __future__ import annotations

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

torch.set_num_threads(1)
rows, model, out, *critic_url = sys.argv[1:]
seen: list[str] = []
written: list[str] = []


class Watched(SDPOTrainer):
    """Keeps the texts of the self-teacher's prompts."""

    def _tokenize_prompts_untruncated(self, prompts):
        seen.extend(text for prompt in prompts for text in [message["content"] for message in prompt])
        return super()._tokenize_prompts_untruncated(prompts)


def reward(completions, **columns):
    written.extend(messages[0]["content"] for messages in completions)
    return [0.0] * len(completions)


trainer = Watched(
    model=AutoModelForCausalLM.from_pretrained(model),
    args=SDPOConfig(
        output_dir=out,
        use_cpu=True,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        distillation_mode="full_logits",
        distillation_topk=None,
        include_environment_feedback=True,
    ),
    reward_funcs=reward,
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    processing_class=AutoTokenizer.from_pretrained(model),
)
before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
callback = None
if critic_url:
    import stepalign as sa
    from stepalign.feedback.findings import FINDINGS

    critic = sa.Critic(critic_url, model="critic", prompt="{{ attempt }}", sees="nothing")
    policies = dict.fromkeys(FINDINGS, "use")  # the server answers with an echo
    callback = sa.StepAlignCallback(trainer, critic, policies=policies)
    trainer.add_callback(callback)
trainer.train()
logs = [row for row in trainer.state.log_history if "loss" in row]
moved = sum(not torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
cut = callback and callback.cut_prompts
found = {"trl": trl.__version__, "logs": logs, "seen": seen, "written": written, "moved": moved, "cut": cut}
print(json.dumps(found))
