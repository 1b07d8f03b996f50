"""transformers' own Trainer trains it."""

import pytest
import torch
from transformers import Trainer, TrainingArguments


@pytest.mark.parametrize("name", ["palimpsa_d", "transformer"])
def test_three_steps_of_the_trainer_are_three_steps_of_adamw(name, make_model, draw_tokens, tmp_path):
    """Gradients of two parts of different lengths are added up by tokens, and not by parts."""
    model, reference = make_model(name), make_model(name)
    rows = [{"input_ids": x, "labels": x.clone()} for x in draw_tokens(12, 10)]
    for row in rows[::2]:
        row["labels"][4:] = -100
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        activation_checkpointing=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(3):
        batch = {key: torch.stack([row[key] for row in rows[4 * step : 4 * step + 4]]) for key in rows[0]}
        optimizer.zero_grad()
        loss = reference(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=2e-3)
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_smoothed_labels_are_of_the_next_token(make_model, draw_tokens, tmp_path):
    """Trainer shifts those of the classes that it knows: a token of another would be its own label."""
    model, tokens = make_model("palimpsa_d"), draw_tokens(2, 10)
    arguments = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, report_to=[], use_cpu=True)
    found = Trainer(model=model, args=arguments).compute_loss(model, {"input_ids": tokens, "labels": tokens.clone()})
    logits = model(input_ids=tokens).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
