def render(results, config):
    return "x"
