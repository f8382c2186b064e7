package peer

// len is how many processes are watched.
func (w *watcher) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.procs)
}

// any is one of them.
func (w *watcher) any() *Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.procs {
		return p
	}
	return nil
}
