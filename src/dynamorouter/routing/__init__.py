"""Routers: from a batch's hidden states, or its words, to the experts that answer each row."""
