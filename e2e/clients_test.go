package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/internal/debimage"
	"github.com/volant-edge/volant/volanttest/need"
)

// Any stock client wakes a machine with its default timeouts: from nothing, from a suspend, from a stop.
func TestStockClientsWakeMachines(t *testing.T) {
	t.Parallel()
	s := common(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, debimage.ClientKeyFile(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		image string
		port  int
		args  func(ip string) []string
		want  string
	}{
		{"nginx", 80, func(ip string) []string { return []string{"curl", "-sS", "http://" + ip + "/"} }, "nginx"},
		{"redis", 6379, func(ip string) []string { return []string{"redis-cli", "-h", ip, "ping"} }, "PONG"},
		{"sshd", 22, func(ip string) []string {
			return []string{
				"ssh", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-n",
				"root@" + ip, "echo", "awake",
			}
		}, "awake"},
		{"mosquitto", 1883, func(ip string) []string {
			return []string{"mosquitto_pub", "-h", ip, "-t", "test", "-m", "hello", "-d"}
		}, "sending PUBLISH"},
	} {
		t.Run(c.image, func(t *testing.T) {
			addr := deploy(t, s, c.image, c.image, c.port, `min = 0`)
			ip := strings.TrimSuffix(addr, addr[strings.LastIndex(addr, ":"):])
			need.Tool(t, "machine", c.args(ip)[0])
			for _, from := range []string{"nothing", "suspend", "stop"} {
				if from != "nothing" {
					sleep(t, s, c.image, from)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				args := c.args(ip)
				out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
				cancel()
				if err != nil || !strings.Contains(strings.ToLower(string(out)), strings.ToLower(c.want)) {
					t.Fatalf("from %s: %s: %v: %q, want %q in it\n%s", from, strings.Join(args, " "), err, out, c.want, whyText(t, s, c.image))
				}
			}
			sleep(t, s, c.image, "stop")
		})
	}
}
