"""What an audit says: stored as JSON, and shown as Markdown, as a page and as a card."""
