package unix

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

var errStatus = errors.New("malformed status")

// parseGroups reads the line "Groups:" of /proc/<pid>/status (proc(5)). The
// kernel escapes line ends in the program's name, so a line begins where it
// seems to. A status without the line is refused: it is not the whole file.
func parseGroups(status []byte) ([]uint32, error) {
	const label = "Groups:"
	for len(status) > 0 {
		var line []byte
		var whole bool
		line, status, whole = bytes.Cut(status, []byte{'\n'})
		rest, ok := bytes.CutPrefix(line, []byte(label))
		if !ok {
			continue
		}
		if !whole {
			return nil, fmt.Errorf("%w: the line %q has no end", errStatus, label)
		}
		return parseIDs(rest)
	}
	return nil, fmt.Errorf("%w: no line %q", errStatus, label)
}

// parseIDs reads decimal numbers between blanks and tabs.
func parseIDs(line []byte) ([]uint32, error) {
	var ids []uint32
	for {
		line = bytes.TrimLeft(line, " \t")
		if len(line) == 0 {
			return ids, nil
		}
		end := bytes.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		id, err := strconv.ParseUint(string(line[:end]), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%w: a group is not a 32-bit number", errStatus)
		}
		ids = append(ids, uint32(id))
		line = line[end:]
	}
}
