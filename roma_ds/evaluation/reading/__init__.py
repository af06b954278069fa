"""What a generated text says: thinking and markup taken off, then letters, option texts or numbers."""
