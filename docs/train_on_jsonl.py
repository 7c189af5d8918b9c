"""CPO on a JSONL file of prompts and responses: train_on_jsonl.py pairs.jsonl model output"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpo import GroupScorer, cpo_loss, draw_negatives, interpolate

data, name, output = sys.argv[1:]  # the model: a folder, or a name of the hub
batch, device = 16, "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(name)
load = AutoModelForCausalLM.from_pretrained  # a model that is already fine-tuned by MLE
reference, policy = (load(name, dtype=torch.float32).to(device) for _ in range(2))
with open(data, encoding="utf-8") as file:
    pairs = [json.loads(line) for line in file]
pairs = [pairs[row] for row in torch.randperm(len(pairs))[: len(pairs) // batch * batch]]
prefixes = [tokenizer(pair["prompt"]).input_ids[-512:] for pair in pairs]
texts = [pair["response"] + tokenizer.eos_token for pair in pairs]
truths = [tuple(tokenizer(text, add_special_tokens=False).input_ids[:256]) for text in texts]
assert pairs, f"{data} has fewer than {batch} rows"
rows = {"prefixes": prefixes, "continuations": truths, "batch": batch, "model": reference,
        "eos_token_id": tokenizer.eos_token_id, "max_continuation_tokens": 256}  # fmt: skip
drawn = draw_negatives(rows, {"BN": 2, "MN": 3, "TN": 2}, seed=0)
mask = torch.tensor(drawn.mask, device=device)
score_reference, score_policy = GroupScorer(reference).score, GroupScorer(policy).score
optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-5, weight_decay=0.05)
for start in range(0, len(pairs), batch):
    step = slice(start, start + batch)
    with torch.no_grad():  # [B, K], column 0 the response
        reference_logps = score_reference(prefixes[step], drawn.candidates[step])
    policy_logps = score_policy(prefixes[step], drawn.candidates[step])
    loss = cpo_loss(policy_logps, reference_logps, 5.0, mask[step])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    print(f"step {start // batch + 1}: loss {loss.item():.4f}")  # ln K at first
interpolate(reference, policy, alpha=0.5).save_pretrained(output)  # section 4 mixes with MLE
tokenizer.save_pretrained(output)
