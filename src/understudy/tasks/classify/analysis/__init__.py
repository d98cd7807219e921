"""What the DeiT article asks of finished runs: strategies, disagreement, tokens, throughput, teachers, settings."""
