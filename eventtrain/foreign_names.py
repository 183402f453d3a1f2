"""What the events are called in other frameworks, so that messages can name ours."""

from __future__ import annotations

_HERE = {
    "begin_fit": "on_train_begin on_fit_begin on_fit_start on_train_start before_fit fit_start "
    "on_training_run_start on_init_end after_create STARTED before_run",
    "begin_epoch": "on_epoch_begin on_epoch_start on_train_epoch_start before_epoch epoch_start "
    "EPOCH_STARTED",
    "begin_train": "before_train on_loader_start before_train_epoch",
    "begin_validate": "on_validation_start on_validation_epoch_start on_test_start on_test_begin "
    "on_test_epoch_start on_eval_epoch_start before_validate eval_start on_sanity_check_start "
    "before_val before_val_epoch before_test before_test_epoch on_eval_start on_validate_begin",
    "begin_predict": "on_predict_begin on_predict_start on_predict_epoch_start predict_start",
    "begin_batch": "on_batch_begin on_batch_start on_train_batch_begin on_train_batch_start "
    "on_step_begin before_batch before_forward batch_start on_validation_batch_start "
    "on_test_batch_start on_test_batch_begin on_predict_batch_start on_predict_batch_begin "
    "eval_batch_start GET_BATCH_COMPLETED ITERATION_STARTED "
    "before_train_iter before_val_iter before_test_iter on_train_step_start on_eval_step_start",
    "after_pred": "before_loss after_forward eval_after_forward",
    "after_loss": "before_backward on_before_backward",
    "after_backward": "on_after_backward on_grad_computed on_backward_end",
    "begin_step": "before_step on_before_optimizer_step on_pre_optimizer_step",
    "after_step": "on_optimizer_step on_before_zero_grad",
    "after_batch": "on_batch_end on_train_batch_end on_step_end on_substep_end batch_end "
    "on_validation_batch_end on_test_batch_end on_predict_batch_end on_prediction_step "
    "eval_batch_end ITERATION_COMPLETED "
    "after_train_iter after_val_iter after_test_iter on_train_step_end on_eval_step_end",
    "after_train": "on_loader_end after_train_epoch",
    "after_validate": "on_validation_end on_validation_epoch_end on_test_end on_test_epoch_end "
    "on_eval_epoch_end on_evaluate eval_end on_sanity_check_end "
    "after_val after_val_epoch after_test after_test_epoch on_eval_end on_validate_end",
    "after_predict": "on_predict on_predict_end on_predict_epoch_end predict_end",
    "after_epoch": "on_epoch_end on_train_epoch_end on_log epoch_end EPOCH_COMPLETED "
    "training_epoch_end",
    "after_fit": "on_train_end on_fit_end fit_end on_training_run_end COMPLETED after_run",
    "after_cancel_fit": "on_keyboard_interrupt",
    "fit_failed": "on_exception EXCEPTION_RAISED",
}
_EVENTS = {hook.lower(): event for event, hooks in _HERE.items() for hook in hooks.split()}
OTHER_HOOKS = {
    hook: f"call the method {event}"
    for event, hooks in _HERE.items()
    for hook in hooks.split()
    if hook.islower()
}
"""Hooks of Keras, Lightning, fastai, Composer, skorch, TorchTNT, MMEngine and the HF Trainer."""
OTHER_HOOKS |= dict.fromkeys(
    ("training_step", "validation_step", "test_step", "predict_step"),
    "override one_batch of a Runner of yours",
)
OTHER_HOOKS |= {
    "configure_optimizers": "pass the optimizer to Learner",
    "on_save_checkpoint": "call the method state_dict, which returns what is to be saved",
    "on_load_checkpoint": "call the method load_state_dict",
}


def named_here(name: str) -> str:
    """Return a hint such as ``" Here it is 'after_epoch'."``, or an empty string.

    Args:
        name: What somebody took for an event: ``"on_epoch_end"``, ``"Events.EPOCH_COMPLETED"``.
    """
    event = _EVENTS.get(name.rpartition(".")[2].lower())
    return f" Here it is called {event!r}." if event else ""
