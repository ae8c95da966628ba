"""Oxford-IIIT Pet: cats and dogs, a trimap each."""
