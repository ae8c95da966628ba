def section():
  return ''
