package mesh

import (
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

func trim(b []byte) string { return strings.TrimSpace(string(b)) }

// bufferMost is how much of a connection may be under way: 1.3 Gbit/s over 200 ms.
const bufferMost = 32 << 20

// tune raises what the kernel allows TCP. A value that others have made higher stays, and one that cannot be written
// costs speed alone.
func tune(log *slog.Logger) {
	raise := func(name string, higher func(string) (string, bool)) {
		b, err := os.ReadFile(sysctlDir + name)
		if errors.Is(err, os.ErrNotExist) {
			return // not in this namespace, or not in this kernel
		}
		value, change := higher(trim(b))
		if err == nil && change {
			err = os.WriteFile(sysctlDir+name, []byte(value), 0) // exists, so the mode is not used
		}
		if err != nil {
			log.Warn("kernel limit not raised", "sysctl", "net/"+name, "err", err)
		}
	}
	raise("ipv4/tcp_fastopen", func(s string) (string, bool) { return withBits(s, 3) })
	for _, name := range []string{"ipv4/tcp_rmem", "ipv4/tcp_wmem"} {
		raise(name, func(s string) (string, bool) { return withMost(s, bufferMost) })
	}
}

// withBits sets bits in a number.
func withBits(s string, bits int) (string, bool) {
	n, err := strconv.Atoi(s)
	if err != nil || n&bits == bits {
		return s, false
	}
	return strconv.Itoa(n | bits), true
}

// withMost raises the last of the numbers.
func withMost(s string, most int) (string, bool) {
	f := strings.Fields(s)
	if len(f) == 0 {
		return s, false
	}
	n, err := strconv.Atoi(f[len(f)-1])
	if err != nil || n >= most {
		return s, false
	}
	f[len(f)-1] = strconv.Itoa(most)
	return strings.Join(f, " "), true
}
