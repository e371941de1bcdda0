"""What can answer in place of the streaming engine: model servers that speak OpenAI's API, and falling back to them.

The interface is that of `vlm_perception.stream.Stream`: frames in, one tool call or an answer out, each by a ticket.
"""
