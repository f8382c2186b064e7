package etcd

import "strings"

// Names below the prefix. The feed watches from nameHead to the end of
// nameData in one range, so nothing else lies between the two.
const (
	nameGen   = "gen/"  // table → written by each delete in that table
	nameHead  = "head"  // the ID of the newest Update, whose revision is the store's
	nameData  = "k/"    // key → value
	nameLock  = "lock/" // name → who holds it, bound to a lease
	nameProbe = "probe" // written to find out whether etcd takes writes
	nameStore = "store" // the record of the store, and the fence
)

// layout knows where in etcd things are.
type layout struct{ prefix string }

func (l layout) head() string             { return l.prefix + nameHead }
func (l layout) store() string            { return l.prefix + nameStore }
func (l layout) probe() string            { return l.prefix + nameProbe }
func (l layout) data(key string) string   { return l.prefix + nameData + key }
func (l layout) dataEnd() string          { return end(l.prefix + nameData) }
func (l layout) gen(table string) string  { return l.prefix + nameGen + table }
func (l layout) lock(name string) string  { return l.prefix + nameLock + name }
func (l layout) cut(in []byte) []byte     { return in[len(l.prefix)+len(nameData):] }
func (l layout) key(in []byte) string     { return string(l.cut(in)) }
func (l layout) isHead(in []byte) bool    { return string(in) == l.head() }
func (l layout) isData(in []byte) bool    { return strings.HasPrefix(string(in), l.prefix+nameData) }
func (l layout) rangeEnd(p string) string { return end(l.data(p)) }

// table is what a delete of key marks: the key up to its first slash. Those
// without one share a table.
func table(key string) string {
	if i := strings.IndexByte(key, '/'); i >= 0 {
		return key[:i+1]
	}
	return ""
}

// end is the least string greater than all that begin with prefix, which has a
// byte below 0xff.
func end(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return "\x00" // etcd: to the last key there is.
}
