"""What several tests share: golden cases, small networks, servers."""
