"""What the downloader knows of the web: URLs, addresses, robots.txt and opt-out headers."""
