"""Tables as text, figures as files, and the layout of pages."""
