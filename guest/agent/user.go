package agent

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/volant-edge/volant/guest"
)

// identity is who a process is.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookUser resolves "name", "uid", "name:group" or "uid:gid" by the image's files; "" is root.
func lookUser(who string) (identity, error) {
	passwd, err := readLines("/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	group, err := readLines("/etc/group")
	if err != nil {
		return identity{}, err
	}
	return resolveUser(who, passwd, group)
}

// readLines reads the fields of a file such as passwd; one that is missing is empty.
func readLines(file string) ([][]string, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	return splitLines(f), nil
}

const maxEtcLines = 100_000

func splitLines(r io.Reader) [][]string {
	var out [][]string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() && len(out) < maxEtcLines {
		if t := strings.TrimSpace(s.Text()); t != "" && t[0] != '#' {
			out = append(out, strings.Split(t, ":"))
		}
	}
	return out // a line that is too long ends the file, as it does for libc
}

func resolveUser(who string, passwd, group [][]string) (identity, error) {
	user, grp, hasGroup := strings.Cut(who, ":")
	if user == "" {
		user = "0"
	}
	id := identity{home: "/"}
	n, isNumber := parseID(user)
	id.uid = n
	found, name := false, user
	for _, l := range passwd {
		if len(l) < 6 {
			continue
		}
		u, ok1 := parseID(l[2])
		g, ok2 := parseID(l[3])
		if !ok1 || !ok2 || (l[0] != user && (!isNumber || u != n)) {
			continue
		}
		found, name = true, l[0]
		id.uid, id.gid = u, g
		if l[5] != "" {
			id.home = l[5]
		}
		break
	}
	if !found && !isNumber {
		return identity{}, guest.Errorf(guest.KindInvalid, "the image has no user %q in /etc/passwd", user)
	}
	if hasGroup && grp != "" {
		g, ok := lookGroup(grp, group)
		if !ok {
			return identity{}, guest.Errorf(guest.KindInvalid, "the image has no group %q in /etc/group", grp)
		}
		id.gid = g
		return id, nil
	}
	if found {
		id.groups = memberOf(name, group)
	}
	return id, nil
}

func lookGroup(name string, group [][]string) (uint32, bool) {
	for _, l := range group {
		if len(l) >= 3 && l[0] == name {
			if g, ok := parseID(l[2]); ok {
				return g, true
			}
		}
	}
	return parseID(name)
}

func memberOf(user string, group [][]string) []uint32 {
	var out []uint32
	for _, l := range group {
		if len(l) < 4 {
			continue
		}
		g, ok := parseID(l[2])
		if !ok {
			continue
		}
		for m := range strings.SplitSeq(l[3], ",") {
			if m == user {
				out = append(out, g)
				break
			}
		}
	}
	return out
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}
