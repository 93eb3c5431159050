"""From images to latent records to batches.

Usage:
    $ python -m data_pipeline.encode_latents --source=digits --autoencoder=identity --output=DIR

    from data_pipeline import loader
    batches = loader.make_loader(
        "DIR", seed=0, batch_size=256, rows=(0, 256), start_step=0, num_steps=1000)
    for batch in batches:
        batch["mean"], batch["label"]
"""
