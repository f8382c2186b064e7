package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
)

// Action is what becomes of an entry.
type Action string

// The actions of a plan.
const (
	Create Action = "create"
	Update Action = "update"
	Delete Action = "delete"
	// Refuse is for an entry that cannot be made so: another one, which is not
	// the set's to change, is in the way.
	Refuse Action = "refuse"
)

// Step is one change.
type Step struct {
	Action Action
	// Entry as it is to be; one to delete as it is.
	Entry *types.Entry
	// At is where the entry is declared, as file:line; empty for one to delete.
	At string
	// Changes are the fields that an update changes.
	Changes []Change
	// Problem is why an entry is refused, and what to do about it.
	Problem string
}

// Change is a field that gets another value. A field that is not set has no
// values, a list may have several.
type Change struct {
	Field    string
	From, To []string
}

// Plan is what to do, in an order in which no step is in another's way, and
// which leaves nobody without an identity: what is to go goes last, unless it is
// in the way of what is to come.
type Plan struct {
	Steps []Step
	// Unchanged is how many declared entries are as they are to be.
	Unchanged int
	// Undeclared are the entries of the set that no file declares any more, and
	// that stay because nobody asked to delete them, by ID.
	Undeclared []string
}

// Diff says how a server that has the current entries comes to have what is
// desired. It deletes entries of the set that are not declared only if prune is
// set, and other entries never. What desired declares has to be free of
// duplicates, as [Load] sees to.
func Diff(set Set, desired []Declared, current []*types.Entry, prune bool) Plan {
	d := diff{
		set: set, prune: prune,
		ids: make(map[string]*types.Entry, len(current)), keys: make(map[string]*types.Entry, len(current)),
		declared: make(map[string]bool, len(desired)), inTheWay: make(map[string]bool),
		refused: make(map[string]bool), freed: make(map[string]bool), waiting: make(map[string]move),
	}
	for _, e := range current {
		d.ids[e.GetId()], d.keys[keyOf(e)] = e, e
	}
	for _, want := range desired {
		d.declared[want.Entry.GetId()] = true
	}
	for _, want := range d.possible(desired) {
		d.add(want)
	}
	d.breakCircles(desired)
	d.undeclared(current)
	return Plan{
		Steps:     slices.Concat(d.refuses, d.early, d.updates, d.creates, d.late),
		Unchanged: d.unchanged, Undeclared: d.left,
	}
}

type diff struct {
	set      Set
	prune    bool
	ids      map[string]*types.Entry // what is there
	keys     map[string]*types.Entry // the same, by keyOf
	declared map[string]bool         // IDs
	refused  map[string]bool         // IDs
	inTheWay map[string]bool         // IDs of entries that go before others come
	freed    map[string]bool         // keys that an update has given up
	waiting  map[string]move         // by the key that has to be given up first

	refuses, early, updates, creates, late []Step
	unchanged                              int
	left                                   []string
}

// move is an update that gives an entry another key.
type move struct {
	want Declared
	now  *types.Entry
}

// possible are the declared entries without those that cannot be made so, which
// it refuses: also those that wait for one that is refused.
func (d *diff) possible(desired []Declared) []Declared {
	for {
		left := make([]Declared, 0, len(desired))
		for _, want := range desired {
			problem := d.problem(want)
			if problem == "" {
				left = append(left, want)
				continue
			}
			d.refused[want.Entry.GetId()] = true
			d.refuses = append(d.refuses, Step{Action: Refuse, Entry: want.Entry, At: want.At, Problem: problem})
		}
		if len(left) == len(desired) {
			return left
		}
		desired = left
	}
}

// problem is why an entry cannot be made, or nothing.
func (d *diff) problem(want Declared) string {
	id, holder := want.Entry.GetId(), d.keys[keyOf(want.Entry)]
	if holder == nil || holder.GetId() == id {
		return ""
	}
	problem := fmt.Sprintf("entry %s has the same parent, SPIFFE ID and selectors", holder.GetId())
	owned := d.set.Owns(holder.GetId())
	switch {
	case d.refused[holder.GetId()]:
		return problem + ", and is refused itself"
	case d.declared[holder.GetId()] || owned && d.prune || d.madeByOthers(want, holder):
		return ""
	case owned:
		return problem + ", and is not declared any more: delete it with -prune"
	}
	return problem + ", and is not of this set: delete it, or declare it with its entry_id"
}

// madeByOthers says whether an entry without an ID of its own is there just so,
// under the ID that somebody else chose.
func (d *diff) madeByOthers(want Declared, holder *types.Entry) bool {
	id := want.Entry.GetId()
	return !d.set.Owns(holder.GetId()) && d.set.ID(want.Entry) == id && d.ids[id] == nil && len(changes(holder, want.Entry)) == 0
}

// add decides about one declared entry that is possible.
func (d *diff) add(want Declared) {
	key := keyOf(want.Entry)
	now, holder := d.ids[want.Entry.GetId()], d.keys[key]
	switch {
	case holder != nil && holder == now:
		d.update(want, now)
		return
	case holder != nil && !d.declared[holder.GetId()] && d.madeByOthers(want, holder):
		d.unchanged++
		return
	case holder != nil && !d.declared[holder.GetId()]:
		d.inTheWay[holder.GetId()] = true
	}
	switch {
	case now == nil:
		d.creates = append(d.creates, Step{Action: Create, Entry: want.Entry, At: want.At})
	case holder != nil && d.declared[holder.GetId()] && !d.freed[key]:
		d.waiting[key] = move{want, now}
	default:
		d.move(move{want, now})
	}
}

// move updates an entry, and then the one that waits for its key, and so on.
func (d *diff) move(m move) {
	for {
		d.update(m.want, m.now)
		key := keyOf(m.now)
		d.freed[key] = true
		next, ok := d.waiting[key]
		if !ok {
			return
		}
		delete(d.waiting, key)
		m = next
	}
}

// breakCircles has entries step aside that wait for each other.
func (d *diff) breakCircles(desired []Declared) {
	for _, want := range desired {
		if m, ok := d.waiting[keyOf(want.Entry)]; ok {
			d.early = append(d.early, Step{Action: Delete, Entry: m.now})
			d.creates = append(d.creates, Step{Action: Create, Entry: want.Entry, At: want.At})
		}
	}
}

func (d *diff) update(want Declared, now *types.Entry) {
	fields := changes(now, want.Entry)
	if len(fields) == 0 {
		d.unchanged++
		return
	}
	entry := want.Entry
	if entry.AdditionalAttributes == nil && now.AdditionalAttributes != nil {
		// A server may keep attributes of which an update says nothing.
		entry = proto.CloneOf(entry)
		entry.AdditionalAttributes = &types.Entry_AdditionalAttributes{}
	}
	d.updates = append(d.updates, Step{Action: Update, Entry: entry, At: want.At, Changes: fields})
}

// undeclared decides about the entries of the set that no file declares.
func (d *diff) undeclared(current []*types.Entry) {
	for _, e := range slices.SortedFunc(slices.Values(current), byID) {
		id := e.GetId()
		switch {
		case d.declared[id] || !d.set.Owns(id):
		case !d.prune:
			d.left = append(d.left, id)
		case d.inTheWay[id]:
			d.early = append(d.early, Step{Action: Delete, Entry: e})
		default:
			d.late = append(d.late, Step{Action: Delete, Entry: e})
		}
	}
}

func byID(a, b *types.Entry) int { return cmp.Compare(a.GetId(), b.GetId()) }

// changes are the fields in which an entry is not as wanted.
func changes(now, want *types.Entry) []Change {
	var out []Change
	from, to := Fields(now), Fields(want)
	for i := range to {
		if !slices.Equal(from[i].To, to[i].To) {
			out = append(out, Change{Field: to[i].Field, From: from[i].To, To: to[i].To})
		}
	}
	return out
}

// Fields are the fields of an entry that files declare, but for its ID, as
// changes from nothing. Values whose order means nothing are sorted.
func Fields(e *types.Entry) []Change {
	number := func(n int64) []string {
		if n == 0 {
			return nil
		}
		return []string{strconv.FormatInt(n, 10)}
	}
	truth := func(b bool) []string {
		if !b {
			return nil
		}
		return []string{"true"}
	}
	var hint []string
	if e.GetHint() != "" {
		hint = []string{e.GetHint()}
	}
	federates := slices.Compact(slices.Sorted(slices.Values(e.GetFederatesWith())))
	return []Change{
		{Field: "parent_id", To: []string{idText(e.GetParentId())}},
		{Field: "spiffe_id", To: []string{idText(e.GetSpiffeId())}},
		{Field: "selectors", To: selectorTexts(e)},
		{Field: "x509_svid_ttl", To: number(int64(e.GetX509SvidTtl()))},
		{Field: "jwt_svid_ttl", To: number(int64(e.GetJwtSvidTtl()))},
		{Field: "federates_with", To: federates},
		{Field: "dns_names", To: e.GetDnsNames()}, // The first is the subject's common name.
		{Field: "admin", To: truth(e.GetAdmin())},
		{Field: "downstream", To: truth(e.GetDownstream())},
		{Field: "store_svid", To: truth(e.GetStoreSvid())},
		{Field: "hint", To: hint},
		{Field: "entryExpiry", To: number(e.GetExpiresAt())},
		{Field: "disable_x509_svid_prefetch", To: truth(e.GetAdditionalAttributes().GetDisableX509SvidPrefetch())},
		{Field: "jwt_svid_include_jti", To: truth(e.GetAdditionalAttributes().GetJwtSvidIncludeJti())},
	}
}
