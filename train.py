"""Pretrain an ELMo on plain text, or resume a run.

A tiny one on a laptop:

    python train.py --config_name tiny --train_file corpus.txt --output_dir runs/tiny --per_device_train_batch_size 32

The original recipe (Adagrad) and a modern one (Muon and AdamW, warm-up, cosine):

    python train.py configs/recipes/original.yaml --train_file 'news/*.gz' --output_dir runs/news
    python train.py configs/recipes/two_hours.yaml --train_file 'news/*.gz' --output_dir runs/news

On several GPUs, on two CPU processes, and after an interruption:

    accelerate launch --config_file configs/accelerate/multi_gpu.yaml train.py ... --save_steps 1000
    accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml train.py ...
    python train.py ... --resume_from_checkpoint last

Processes that die are started again; without the variable the new ones may wait for the dead (pytorch issue 135712):

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc_per_node 2 --max_restarts 3 \\
        train.py ... --save_steps 1000 --resume_from_checkpoint auto

Then `AutoModel.from_pretrained("runs/news")` loads it. Every flag: `python train.py --help`.
"""

import signal
import sys
from pathlib import Path

from transformers.utils import logging

from modeling_elmo.arguments import ArgumentsError, PretrainingArguments, parse_arguments
from modeling_elmo.checkpoints import CheckpointError
from modeling_elmo.commands import is_first_process, lenient_output
from modeling_elmo.freed_memory import keep_freed_memory
from modeling_elmo.pretraining import Pretrainer
from modeling_elmo.publish import PublishError, check_destination, publish
from modeling_elmo.stopping import Stopped
from modeling_elmo.text_files import DataError


@lenient_output()
def main() -> int:
    keep_freed_memory()
    logging.disable_progress_bar()  # of transformers: a bar for each file that is written
    try:
        args = parse_arguments(PretrainingArguments, description=__doc__)
        if args.push_to_hub:
            args.hub_model_id = check_destination(args.hub_model_id or Path(args.output_dir).resolve().name)
        trainer = Pretrainer(args)
        trainer.train()
        if args.push_to_hub and trainer.is_main:
            print(f"published {publish(args.output_dir, str(args.hub_model_id), args.hub_private_repo)}")
        return 0
    except (ArgumentsError, PublishError, DataError, CheckpointError, FloatingPointError, OSError, Stopped) as error:
        told, code = str(error), 128 + error.signal_number if isinstance(error, Stopped) else 2
    except KeyboardInterrupt:  # before there was anything to save
        told, code = "stopped", 128 + signal.SIGINT
    if is_first_process():  # each process has the same
        print(f"train.py: {told}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
