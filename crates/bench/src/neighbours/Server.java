// A server of the Java machine: a table of objects on the heap, some of which are made anew by requests.
import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;

class Server {
    public static void main(String[] arguments) throws Exception {
        int keys = Integer.parseInt(arguments[1]);
        var table = new ConcurrentHashMap<Integer, byte[]>();
        for (int key = 0; key < keys; key++) table.put(key, new byte[1024]);
        var address = new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(arguments[0]));
        var server = HttpServer.create(address, 64);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            int key = Integer.parseInt(exchange.getRequestURI().getPath().substring(1));
            if (key % 4 == 0) table.put(key, new byte[1024]);
            byte[] answer = table.get(key);
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
