"""Fine-tuning on benchmarks, by cross-validation or on the divisions that come with them."""
