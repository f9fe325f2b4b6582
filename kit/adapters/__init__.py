"""What happens to an adapter after training: saved, verified, merged, blended, published."""
