package k8s

import (
	"slices"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/attest"
)

const (
	// maxPending bounds the answers of one pod that are kept for containers
	// which its status does not name. A container that starts has one; only who
	// makes cgroups in that of a pod could ask for more.
	maxPending = 16
	// maxDeleted bounds the UIDs that are remembered of pods that were deleted:
	// about 50 bytes each.
	maxDeleted = 1024
	// absentGrace is for how long a pod is kept that the kubelet does not name
	// any more: after a restart it begins with an incomplete list.
	absentGrace = 10 * time.Second
)

// answer is what is said of one container until changed is closed.
type answer struct {
	selectors attest.Selectors
	// whole says that the container's status is in it, or is not wanted.
	whole   bool
	changed chan struct{}
}

// verdict is what is known of a place.
type verdict int

const (
	unsynced    verdict = iota // nothing, as nobody has answered yet
	unknown                    // no such pod
	deleted                    // its pod is no more
	foreign                    // the container is not one of its pod's
	noNamespace                // the labels of the pod's namespace are not known
	invalid                    // facts that no selector can hold
	answered
)

// sight is what a look at a place found.
type sight struct {
	verdict verdict
	answer  answer // a copy, if answered
	err     error  // if invalid
	// final says that waiting will not change it.
	final bool
	// news is closed when there may be more to see.
	news <-chan struct{}
}

// pods is what is known of this node's pods, and what has been said of them.
type pods struct {
	withNamespaces bool
	withoutStatus  bool // no selectors of containers

	mu sync.Mutex
	// guarded by mu:

	byUID      map[string]*pod
	synced     bool // a whole list has been here
	namespaces map[string][]attest.Selector
	gone       map[string]struct{} // deleted
	goneOrder  []string            // ring
	goneNext   int
	news       chan struct{}
}

func newPods(withNamespaces, withoutStatus bool) *pods {
	return &pods{
		withNamespaces: withNamespaces, withoutStatus: withoutStatus,
		byUID: map[string]*pod{}, namespaces: map[string][]attest.Selector{}, gone: map[string]struct{}{},
		news: make(chan struct{}),
	}
}

// look returns what is known now.
func (s *pods) look(at place) sight {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.judge(at)
	found.news = s.news
	return found
}

func (s *pods) judge(at place) sight {
	p := s.find(at)
	if p == nil {
		_, wasDeleted := s.gone[at.pod]
		switch {
		case wasDeleted:
			return sight{verdict: deleted, final: true}
		case !s.synced:
			return sight{verdict: unsynced}
		}
		return sight{verdict: unknown}
	}
	if a := p.answers[at.container]; a != nil {
		return sight{verdict: answered, answer: *a}
	}
	a, v := s.compose(p, at.container)
	if v != answered {
		return sight{verdict: v, final: v == foreign && s.owner(at.container) != nil}
	}
	if err := a.selectors.Validate(); err != nil {
		return sight{verdict: invalid, err: err}
	}
	p.remember(at.container, a)
	return sight{verdict: answered, answer: *a}
}

// find returns the pod of a place. A pod that the kubelet has from a file has
// another UID in the API server; what says so there is an annotation, which
// counts only where the status names the container too.
func (s *pods) find(at place) *pod {
	if at.pod == "" {
		return s.owner(at.container)
	}
	if p := s.byUID[at.pod]; p != nil && p.mirrorOf == "" {
		return p
	}
	if p := s.owner(at.container); p != nil && p.mirrorOf == at.pod && len(at.pod) == 32 {
		return p
	}
	return nil
}

// owner is the one pod whose status names a container.
func (s *pods) owner(id string) *pod {
	var found *pod
	for _, p := range s.byUID {
		if p.container(id) == nil {
			continue
		}
		if found != nil {
			return nil
		}
		found = p
	}
	return found
}

func (p *pod) container(id string) *container {
	i := slices.IndexFunc(p.containers, func(c container) bool { return c.id == id })
	if i < 0 {
		return nil
	}
	return &p.containers[i]
}

// compose makes the answer for a container of p, or one that could become so.
func (s *pods) compose(p *pod, id string) (*answer, verdict) {
	c := p.container(id)
	room := p.starting || s.withoutStatus // sandboxed runtimes have containers that no status names
	if c == nil && (!room || s.owner(id) != nil) {
		return nil, foreign
	}
	facts := slices.Clone(p.facts)
	if s.withNamespaces {
		labels, ok := s.namespaces[p.namespace]
		if !ok {
			return nil, noNamespace
		}
		facts = append(facts, labels...)
	}
	if c != nil && !s.withoutStatus {
		facts = append(facts, c.facts...)
	}
	return &answer{
		selectors: slices.Clip(attest.NewSelectors(facts...)),
		whole:     c != nil || s.withoutStatus,
		changed:   make(chan struct{}),
	}, answered
}

func (p *pod) remember(id string, a *answer) {
	if len(p.answers) >= len(p.containers)+maxPending {
		for other, old := range p.answers {
			if p.container(other) == nil {
				close(old.changed)
				delete(p.answers, other)
			}
		}
	}
	if p.answers == nil {
		p.answers = map[string]*answer{}
	}
	p.answers[id] = a
}

// review ends the answers that are not what would be said now.
func (s *pods) review(p *pod) {
	for id, old := range p.answers {
		now, v := s.compose(p, id)
		if v == answered && now.selectors.Equal(old.selectors) {
			old.whole = now.whole
			continue
		}
		close(old.changed)
		delete(p.answers, id)
	}
}

// set adds a pod, or puts it in the place of what was known of it.
func (s *pods) set(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(p)
	s.tell()
}

func (s *pods) put(p *pod) {
	if old := s.byUID[p.uid]; old != nil {
		p.answers = old.answers
	}
	s.byUID[p.uid] = p
	delete(s.gone, p.uid)
	s.review(p)
}

// remove takes away a pod that was deleted. Its UID never comes again.
func (s *pods) remove(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(uid)
	s.bury(uid)
	s.tell()
}

func (s *pods) forget(uid string) {
	if p := s.byUID[uid]; p != nil {
		for _, a := range p.answers {
			close(a.changed)
		}
		delete(s.byUID, uid)
	}
}

func (s *pods) bury(uid string) {
	if _, ok := s.gone[uid]; ok {
		return
	}
	if len(s.goneOrder) < maxDeleted {
		s.goneOrder = append(s.goneOrder, uid)
	} else {
		delete(s.gone, s.goneOrder[s.goneNext])
		s.goneOrder[s.goneNext] = uid
		s.goneNext = (s.goneNext + 1) % maxDeleted
	}
	s.gone[uid] = struct{}{}
}

// replace makes the list all that is known, as the API server has it: what is
// not in it was deleted.
func (s *pods) replace(list []*pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid := range s.missing(list) {
		s.forget(uid)
		s.bury(uid)
	}
	s.putAll(list)
}

// replaceLoosely is replace for a list of the kubelet's. A pod that is not in it
// is kept for a while, and may come again; one that the API server said was
// deleted does not.
func (s *pods) replaceLoosely(list []*pod, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, p := range s.missing(list) {
		switch {
		case p.absent.IsZero():
			p.absent = now
		case now.Sub(p.absent) >= absentGrace:
			s.forget(uid)
		}
	}
	s.putAll(slices.DeleteFunc(list, func(p *pod) bool { _, dead := s.gone[p.uid]; return dead }))
}

func (s *pods) missing(list []*pod) map[string]*pod {
	listed := make(map[string]bool, len(list))
	for _, p := range list {
		listed[p.uid] = true
	}
	missing := map[string]*pod{}
	for uid, p := range s.byUID {
		if !listed[uid] {
			missing[uid] = p
		}
	}
	return missing
}

func (s *pods) putAll(list []*pod) {
	for _, p := range list {
		s.put(p)
	}
	s.synced = true
	s.tell()
}

// setNamespace keeps the labels of a namespace; without labels it is there all
// the same.
func (s *pods) setNamespace(o *namespaceObject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.namespaces[o.Metadata.Name] = labels(o)
	s.reviewNamespace(o.Metadata.Name)
	s.tell()
}

func (s *pods) removeNamespace(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.namespaces, name)
	s.reviewNamespace(name)
	s.tell()
}

func (s *pods) replaceNamespaces(list []namespaceObject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.namespaces)
	for i := range list {
		s.namespaces[list[i].Metadata.Name] = labels(&list[i])
	}
	for _, p := range s.byUID {
		s.review(p)
	}
	s.tell()
}

func (s *pods) reviewNamespace(name string) {
	for _, p := range s.byUID {
		if p.namespace == name {
			s.review(p)
		}
	}
}

func labels(o *namespaceObject) []attest.Selector {
	facts := []attest.Selector{}
	for k, v := range o.Metadata.Labels {
		facts = append(facts, fact("ns-label", k, v))
	}
	return facts
}

// wake lets those who wait look again.
func (s *pods) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell()
}

func (s *pods) tell() {
	close(s.news)
	s.news = make(chan struct{})
}

// count is how many pods are known.
func (s *pods) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byUID)
}

// inUse says whether something has been said of a pod that is still there.
func (s *pods) inUse() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.byUID {
		if len(p.answers) > 0 {
			return true
		}
	}
	return false
}
