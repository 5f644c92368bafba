package agent

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volant-edge/volant/guest"
)

// ticks are the kernel's for user space, in a second: USER_HZ, the same on all machines we run on.
const ticks = 100

// Processes reads what proc(5) tells of the app's processes and of execs'. One that ends meanwhile is left out.
func (a *agent) Processes(context.Context) ([]guest.Process, error) {
	var boot time.Time
	if err := withFile("/proc/stat", func(r io.Reader) { boot = bootTime(r) }); err != nil {
		return nil, err
	}
	sockets := map[string]guest.Listen{}
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		// A kernel without one of them has no such sockets.
		_ = withFile("/proc/net/"+proto, func(r io.Reader) { listening(r, proto, sockets) })
	}
	out := []guest.Process{}
	for _, pid := range ourPIDs() {
		if p, ok := readProcess(pid, boot, sockets); ok && len(out) < guest.MaxProcesses {
			out = append(out, p)
		}
	}
	return out, nil
}

// ourPIDs are the processes of the app and of execs, in order.
func ourPIDs() []int {
	var pids []int
	for _, g := range []string{appCgroup, execCgroup} {
		b, err := os.ReadFile(g + "/cgroup.procs")
		if err != nil {
			continue // nothing runs there
		}
		for w := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(w); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return pids
}

func readProcess(pid int, boot time.Time, sockets map[string]guest.Listen) (guest.Process, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return guest.Process{}, false
	}
	p, ok := parseStat(string(stat), boot)
	if !ok {
		return p, false
	}
	if line, err := os.ReadFile(dir + "/cmdline"); err == nil && len(line) > 0 {
		p.Command = string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte(" ")))
	}
	// What cannot be read of a process that ends stays empty.
	p.Dir, _ = os.Readlink(dir + "/cwd")
	fds, _ := os.ReadDir(dir + "/fd")
	for _, fd := range fds {
		to, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err != nil {
			continue
		}
		if l, ok := sockets[to]; ok {
			p.Listens = append(p.Listens, l)
		}
	}
	p.Bound()
	return p, true
}

// parseStat reads /proc/PID/stat. The name is in parentheses and may have any character in it.
func parseStat(text string, boot time.Time) (p guest.Process, ok bool) {
	pid, rest, _ := strings.Cut(text, " (")
	end := strings.LastIndex(rest, ") ")
	if end < 0 {
		return p, false
	}
	words := strings.Fields(rest[end+2:])
	if len(words) < 22 {
		return p, false
	}
	p.PID, _ = strconv.Atoi(pid) // the kernel wrote it
	p.Command = rest[:end]
	p.CPU = int64((number(words[11]) + number(words[12])) * 1000 / ticks)
	p.Started = boot.Add(time.Duration(number(words[19])) * time.Second / ticks)
	p.RSS = number(words[21]) * uint64(os.Getpagesize())
	return p, true
}

func bootTime(r io.Reader) (t time.Time) {
	lines(r, func(w []string) {
		if w[0] == "btime" && len(w) > 1 {
			t = time.Unix(int64(number(w[1])), 0).UTC()
		}
	})
	return t
}

// listening adds the listening sockets of /proc/net/tcp and its like, by what a file descriptor links to.
func listening(r io.Reader, proto string, to map[string]guest.Listen) {
	want := "0A" // TCP_LISTEN
	if strings.HasPrefix(proto, "udp") {
		want = "07" // a UDP socket that is bound and not connected
	}
	lines(r, func(w []string) {
		if len(w) < 10 || w[3] != want {
			return
		}
		if addr, ok := parseSocket(w[1]); ok {
			to[fmt.Sprintf("socket:[%s]", w[9])] = guest.Listen{Proto: strings.TrimSuffix(proto, "6"), Address: addr.String()}
		}
	})
}

// parseSocket reads an address as the kernel writes it: words of 4 bytes, each the wrong way round, and a port.
func parseSocket(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	ip, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(ip, uint16(n)), ok
}
